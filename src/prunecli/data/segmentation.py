"""`segmentation:PATH`: images with masks in the layouts of CamVid, ADE20K and Pascal VOC, or in plain folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunecli.data.images import UnreadableImage
from prunecli.data.masks import VOID, MaskSplit, mask_numbers
from prunecli.data.splits import SPLIT_SEED, ImageData, find_folder, read_lines
from prunecli.errors import DataError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAMVID = "sky building pole road pavement tree sign-symbol fence car pedestrian bicyclist".split()
_VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
_ADE20K_CLASSES = 150
_CLASSES_FILE = "classes.txt"
_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
_MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "annots")
_PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "validation", "valid"),
}
_MASK_ENDINGS = ("", "_mask", "_label", "_labels", "_L")
_TEST_SHARE = 0.2
_BINARY = {0, VOID}
_INSPECTED = 64
"""Number of masks in which the meaning of 255 is looked for, where two classes are named."""

_Pairs = tuple[tuple[Path, ...], tuple[Path, ...]]


@dataclass(frozen=True)
class _Layout:
    """What is on disk: pairs by part ("all" if nothing divides them), and the meaning of the masks' numbers.

    Attributes:
        name: Name of the layout.
        parts: Image and mask files of each part.
        class_names: One per class; None: they are counted in the masks.
        void: The number that stands for `VOID`, besides 255.
        first: The number of the first class.
    """

    name: str
    parts: dict[str, _Pairs]
    class_names: tuple[str, ...] | None = None
    void: int | None = None
    first: int = 0


def load(path: str, root: Path, download: bool) -> ImageData:
    """Reads a folder of images and masks in one of these layouts.

    - CamVid: `train/` and `trainannot/`, likewise `val` and `test`; 11 is void.
    - ADE20K: `images/training/` and `annotations/training/`, likewise `validation`; 0 is void and 1 the first class.
    - Pascal VOC: `JPEGImages/`, `SegmentationClass/` and the lists in `ImageSets/Segmentation/`.
    - Plain: `images/` and `masks/`, with `train/`, `val/` and `test/` inside or around them. Without those, a fixed
      fifth of the images is the test split.

    A file `classes.txt` names the classes, one per line; without it, the classes of plain folders are counted in the
    masks. 255 is void, unless two classes are named and the masks hold 0 and 255 alone: then these are the two classes.
    A relative PATH is looked for in the current folder, then in the data folder.

    Raises:
        DataError: The folder does not exist, has no such layout, an image has no mask, or the masks hold 0 and 255
            alone and the classes are not two.
    """
    folder = find_folder(f"segmentation:{path}", path, root, "one with images/ and masks/ in it")
    layout = _camvid(folder) or _voc(folder) or _ade20k(folder) or _plain(folder)
    if layout is None or not layout.parts:
        raise DataError(
            f"{folder}: no images with masks; expected images/ and masks/, or the layout of CamVid "
            "(train/, trainannot/), ADE20K (images/training/, annotations/training/) or Pascal VOC "
            "(JPEGImages/, SegmentationClass/)"
        )
    names = _class_names(folder, layout)
    binary, notes = _meaning_of_255(folder, names, layout)
    table = _binary_table() if binary else _table(len(names), layout)
    splits = {part: MaskSplit(images, masks, table) for part, (images, masks) in layout.parts.items()}
    return replace(_image_data(path, folder, names, splits), notes=notes)


def _image_data(path: str, folder: Path, names: tuple[str, ...], splits: dict[str, MaskSplit]) -> ImageData:
    train, test, validation = splits.get("train"), splits.get("test"), splits.get("val")
    if "all" in splits:
        order = np.random.default_rng(SPLIT_SEED).permutation(len(splits["all"].images))
        cut = round(len(order) * _TEST_SHARE)
        if cut == 0:
            raise DataError(
                f"{folder}: {len(order)} images are too few to hold some out for evaluation; add val/ folders"
            )
        train, test = splits["all"].subset(np.sort(order[cut:])), splits["all"].subset(np.sort(order[:cut]))
    elif test is None:
        test, validation = validation, None
    if test is None:
        raise DataError(f"{folder}: has training images but neither val nor test; add the images to evaluate on")
    return ImageData(
        name=f"segmentation:{path}",
        class_names=names,
        channels=3,
        image_size=_size(test),
        mean=_MEAN,
        std=_STD,
        flip=True,
        train=train,
        test=test,
        validation=validation,
        task="segmentation",
    )


def _size(split: MaskSplit) -> tuple[int, int]:
    """Height and width of the first readable image."""
    failed: UnreadableImage | None = None
    for index in range(len(split.images)):
        try:
            first = split.image(index)
        except UnreadableImage as error:
            failed = failed or error
        else:
            return first.height, first.width
    assert failed is not None, "a split has images"
    raise failed


def _camvid(folder: Path) -> _Layout | None:
    parts = {
        part: _pairs(folder / part, folder / f"{part}annot")
        for part in _PARTS
        if (folder / part).is_dir() and (folder / f"{part}annot").is_dir()
    }
    return _Layout("CamVid", parts, tuple(_CAMVID), void=len(_CAMVID)) if parts else None


def _voc(folder: Path) -> _Layout | None:
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    lists = folder / "ImageSets" / "Segmentation"
    if not (images.is_dir() and masks.is_dir() and lists.is_dir()):
        return None
    parts: dict[str, _Pairs] = {}
    for part in _PARTS:
        file = lists / f"{part}.txt"
        stems = read_lines(file) if file.is_file() else []
        files = [images / f"{stem}.jpg" for stem in stems]
        # The official test lists name images whose masks were never published.
        if files and (part != "test" or (masks / f"{stems[0]}.png").is_file()):
            parts[part] = _matched(files, masks)
    return _Layout("Pascal VOC", parts, tuple(_VOC)) if parts else None


def _ade20k(folder: Path) -> _Layout | None:
    images, masks = folder / "images", folder / "annotations"
    if not ((images / "training").is_dir() and (masks / "training").is_dir()):
        return None
    names_of = {"train": "training", "val": "validation"}
    parts = {part: _pairs(images / name, masks / name) for part, name in names_of.items() if (masks / name).is_dir()}
    table = folder / "objectInfo150.txt"
    lines = read_lines(table)[1:] if table.is_file() else []
    names = tuple(line.split("\t")[-1].strip() for line in lines)
    if len(names) != _ADE20K_CLASSES:
        names = tuple(str(number) for number in range(1, _ADE20K_CLASSES + 1))
    return _Layout("ADE20K", parts, names, void=0, first=1)


def _plain(folder: Path) -> _Layout | None:
    parts: dict[str, _Pairs] = {}
    for part, spellings in _PARTS.items():
        for spelling in spellings:
            inside = _image_and_mask_folder(folder, spelling)
            around = _image_and_mask_folder(folder / spelling, "")
            if part not in parts and (inside or around):
                parts[part] = _pairs(*(inside or around or (folder, folder)))
    if not parts and (whole := _image_and_mask_folder(folder, "")):
        parts["all"] = _pairs(*whole)
    return _Layout("plain", parts) if parts else None


def _image_and_mask_folder(folder: Path, inside: str) -> tuple[Path, Path] | None:
    images = next((folder / name / inside for name in _IMAGE_FOLDERS if (folder / name / inside).is_dir()), None)
    masks = next((folder / name / inside for name in _MASK_FOLDERS if (folder / name / inside).is_dir()), None)
    return (images, masks) if images is not None and masks is not None else None


def _pairs(images: Path, masks: Path) -> _Pairs:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = [path for path in sorted(images.iterdir()) if path.suffix.lower() in IMG_EXTENSIONS]
    if not files:
        raise DataError(f"{images}: no images ({', '.join(IMG_EXTENSIONS)}); put them there, with masks in {masks}")
    return _matched(files, masks)


def _matched(files: Sequence[Path], folder: Path) -> _Pairs:
    by_stem = {path.stem: path for path in sorted(folder.iterdir()) if path.is_file()}
    masks = []
    for file in files:
        mask = next((by_stem[file.stem + end] for end in _MASK_ENDINGS if file.stem + end in by_stem), None)
        if mask is None:
            raise DataError(f"{file}: has no mask; expected {folder / file.stem}.png")
        masks.append(mask)
    return tuple(files), tuple(masks)


def _class_names(folder: Path, layout: _Layout) -> tuple[str, ...]:
    file = folder / _CLASSES_FILE
    if file.is_file():
        names = tuple(read_lines(file))
        if not 2 <= len(names) <= VOID:
            raise DataError(f"{file}: names {len(names)} classes; write 2 to {VOID} names, one on each line")
        return names
    if layout.class_names is not None:
        return layout.class_names
    highest = 0
    for _, masks in layout.parts.values():
        for mask in masks:
            try:
                numbers = mask_numbers(mask)
            except UnreadableImage:
                continue  # loading the image decides whether it may be left out
            highest = max(highest, int(numbers[numbers != VOID].max(initial=0)))
    if not 1 <= highest < VOID:
        raise DataError(
            f"{folder}: its masks hold {highest + 1} classes; a mask holds class numbers from 0 (not 0 and 255, unless "
            f"{_CLASSES_FILE} names two classes)"
        )
    return tuple(str(number) for number in range(highest + 1))


def _meaning_of_255(folder: Path, names: tuple[str, ...], layout: _Layout) -> tuple[bool, tuple[str, ...]]:
    """Whether 255 is the second of two classes and not void, and what to tell about that.

    Raises:
        DataError: The masks hold 0 and 255 alone, and the classes are not two.
    """
    masks = [mask for _, part in layout.parts.values() for mask in part]
    if len(names) != 2:
        binary, other = _first_binary_and_other(masks, stop_at_other=True)
        if binary is not None and other is None:
            raise DataError(
                f"{folder}: its masks hold 0 and 255 alone and its classes are {len(names)}, so that all but the first "
                f"would be missing; write class numbers into the masks, or two names into {_CLASSES_FILE}"
            )
        return False, ()
    inspected = np.unique(np.linspace(0, len(masks) - 1, _INSPECTED).round().astype(int))
    binary, other = _first_binary_and_other([masks[index] for index in inspected], stop_at_other=False)
    if binary is None:
        return False, ()
    if other is None:
        return True, (f"{folder}: its masks hold 0 and 255 alone, read as the classes {names[0]} and {names[1]}",)
    return False, (
        f"{folder}: 255 counts as void, although {binary.name} holds 0 and 255 alone; {other.name} holds other class "
        "numbers. If both mean the same, write the same numbers",
    )


def _first_binary_and_other(masks: Sequence[Path], *, stop_at_other: bool) -> tuple[Path | None, Path | None]:
    """The first mask of 0 and 255 alone, and the first with other numbers.

    Other numbers beside 255 in one mask settle that 255 is void there and elsewhere, so no mask counts as binary then.
    """
    binary: Path | None = None
    other: Path | None = None
    for mask in masks:
        try:
            numbers = set(np.unique(mask_numbers(mask)).tolist())
        except DataError:
            continue  # loading the image decides whether it may be left out
        if numbers <= _BINARY:
            binary = binary or (mask if VOID in numbers else None)
            continue
        other = other or mask
        if VOID in numbers:
            return None, other
        if stop_at_other:
            break
    return binary, other


def _binary_table() -> NDArray[np.int16]:
    table = np.full(256, -1, dtype=np.int16)
    table[[0, VOID]] = 0, 1
    return table


def _table(classes: int, layout: _Layout) -> NDArray[np.int16]:
    table = np.full(256, -1, dtype=np.int16)
    table[layout.first : layout.first + classes] = np.arange(classes)
    table[VOID] = VOID
    if layout.void is not None and table[layout.void] < 0:  # classes.txt may make it a class
        table[layout.void] = VOID
    return table
