"""Which image has which mask, in the folder layouts of CamVid, ADE20K and Pascal VOC and in plain folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.data.splits import SPLIT_NAMES, read_lines
from prunecli.errors import DataError

_IMAGE_FOLDERS = ("images", "image", "imgs", "img")
_MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "annots")
_CVAT_LIST = "default.txt"
_MASK_ENDINGS = ("", "_mask", "_label", "_labels", "_L")

Pairs = tuple[tuple[Path, ...], tuple[Path, ...]]


@dataclass(frozen=True)
class Layout:
    """What is on disk.

    Attributes:
        parts: Image and mask files of each part; "all" if nothing divides them.
        convention: The data set that is laid out like this, by its name in `prunecli.data.mask_labels.CONVENTIONS`;
            None for plain folders.
    """

    parts: dict[str, Pairs]
    convention: str | None = None


def find_layout(folder: Path) -> Layout:
    """The layout of a folder.

    Raises:
        DataError: It has none, or an image has no mask, or more than one.
    """
    layout = _camvid(folder) or _voc(folder) or _ade20k(folder) or _plain(folder)
    if layout is None or not layout.parts:
        raise DataError(
            f"{folder}: no images with masks; expected images/ and masks/, or the layout of CamVid "
            "(train/, trainannot/), ADE20K (images/training/, annotations/training/) or Pascal VOC "
            "(JPEGImages/, SegmentationClass/)"
        )
    return layout


def mask_folders(folder: Path) -> list[Path]:
    """The folders in which a layout has its masks, going by their names; no file is looked at."""
    found = [folder / f"{part}annot" for part in SPLIT_NAMES if (folder / part).is_dir()]
    if (folder / "JPEGImages").is_dir():
        found.append(folder / "SegmentationClass")
    for part in ("", *(spelling for spellings in SPLIT_NAMES.values() for spelling in spellings)):
        pair = _image_and_mask_folder(folder, part) or _image_and_mask_folder(folder / part, "")
        if pair is not None:
            found.append(pair[1])
    return [masks for masks in found if masks.is_dir()]


def _camvid(folder: Path) -> Layout | None:
    parts = {
        part: _pairs(folder / part, folder / f"{part}annot")
        for part in SPLIT_NAMES
        if (folder / part).is_dir() and (folder / f"{part}annot").is_dir()
    }
    return Layout(parts, "camvid") if parts else None


def _voc(folder: Path) -> Layout | None:
    images, masks = folder / "JPEGImages", folder / "SegmentationClass"
    lists = folder / "ImageSets" / "Segmentation"
    if not (images.is_dir() and masks.is_dir() and lists.is_dir()):
        return None
    parts: dict[str, Pairs] = {}
    for part in SPLIT_NAMES:
        file = lists / f"{part}.txt"
        stems = read_lines(file) if file.is_file() else []
        files = [images / f"{stem}.jpg" for stem in stems]
        # The official test lists name images whose masks were never published.
        if files and (part != "test" or (masks / f"{stems[0]}.png").is_file()):
            parts[part] = _matched(files, masks)
    if not parts and (lists / _CVAT_LIST).is_file():
        parts["all"] = _matched([images / f"{stem}.jpg" for stem in read_lines(lists / _CVAT_LIST)], masks)
    return Layout(parts, "voc") if parts else None


def _ade20k(folder: Path) -> Layout | None:
    images, masks = folder / "images", folder / "annotations"
    parts = {
        part: _pairs(images / name, masks / name)
        for part, name in (("train", "training"), ("val", "validation"))
        if (images / name).is_dir() and (masks / name).is_dir()
    }
    return Layout(parts, "ade20k") if parts else None


def _plain(folder: Path) -> Layout | None:
    parts: dict[str, Pairs] = {}
    for part, spellings in SPLIT_NAMES.items():
        for spelling in spellings:
            inside = _image_and_mask_folder(folder, spelling)
            around = _image_and_mask_folder(folder / spelling, "")
            if part not in parts and (inside or around):
                parts[part] = _pairs(*(inside or around or (folder, folder)))
    if not parts and (whole := _image_and_mask_folder(folder, "")):
        parts["all"] = _pairs(*whole)
    return Layout(parts) if parts else None


def _image_and_mask_folder(folder: Path, inside: str) -> tuple[Path, Path] | None:
    images = next((folder / name / inside for name in _IMAGE_FOLDERS if (folder / name / inside).is_dir()), None)
    masks = next((folder / name / inside for name in _MASK_FOLDERS if (folder / name / inside).is_dir()), None)
    return (images, masks) if images is not None and masks is not None else None


def _pairs(images: Path, masks: Path) -> Pairs:
    files = _image_files(images)
    if not files:
        raise DataError(f"{images}: no images ({_endings()}); put them there, with masks in {masks}")
    return _matched(files, masks)


def _matched(files: Sequence[Path], folder: Path) -> Pairs:
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in _image_files(folder):  # there may be notes and lists beside the masks
        by_stem[path.stem].append(path)
    images: dict[str, Path] = {}
    masks = []
    for file in files:
        if file.stem in images:
            raise DataError(f"{images[file.stem]} and {file.name}: would have the same mask; rename or remove one")
        images[file.stem] = file
        candidates = [path for end in _MASK_ENDINGS for path in by_stem.get(file.stem + end, ())]
        if not candidates:
            raise DataError(f"{file}: has no mask; expected {folder / file.stem}.png")
        if len(candidates) > 1:
            raise DataError(
                f"{file}: has {len(candidates)} masks, {candidates[0]} and {candidates[1].name}; remove all but one"
            )
        masks.append(candidates[0])
    return tuple(files), tuple(masks)


def _image_files(folder: Path) -> list[Path]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    endings = (*IMG_EXTENSIONS, ".gif")
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in endings and path.name[0] != "."]


def _endings() -> str:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return ", ".join(IMG_EXTENSIONS)
