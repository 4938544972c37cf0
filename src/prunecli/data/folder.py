"""`folder:PATH`: one folder per class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from prunecli.data.splits import DataSet, FileSplit, find_folder
from prunecli.errors import DataError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EVALUATION = ("test", "val", "validation")
_WORDNET = re.compile(r"n\d{8}")


def load(path: str, root: Path, download: bool) -> DataSet:
    """Reads PATH/train/CLASS/... and PATH/val or PATH/test, or PATH/CLASS/... as a test split alone.

    A relative PATH is looked for in the current folder, then in the data folder. Class folders named by WordNet ids get
    their indices among the 1,000 ImageNet classes, so that a subset of ImageNet can be evaluated.

    Raises:
        DataError: The folder does not exist or holds no images.
    """
    folder = find_folder(f"folder:{path}", path, root, "the path of a folder with one sub-folder per class")
    parts = {part: folder / part for part in ("train", *_EVALUATION) if (folder / part).is_dir()}
    if not parts:
        test, names = _scan(folder, None)
        return _image_data(path, names, None, test, None)
    if "train" not in parts:
        test, names = _scan(next(iter(parts.values())), None)
        return _image_data(path, names, None, test, None)
    train, names = _scan(parts.pop("train"), None)
    if not parts:
        raise DataError(f"{folder}: has train/ but none of {', '.join(_EVALUATION)}; add the images to evaluate on")
    evaluation = [_scan(part, names)[0] for part in parts.values()]
    validation = evaluation[1] if len(evaluation) > 1 else None
    return _image_data(path, names, train, evaluation[0], validation)


def image_files(folder: Path, pattern: str, *more: str) -> list[Path]:
    """Files with the suffix of an image, or one of `more`, in `folder` that match `pattern`, relative to it, sorted."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    suffixes = (*IMG_EXTENSIONS, *more)
    paths = sorted(folder.glob(pattern))
    return [path.relative_to(folder) for path in paths if path.suffix.lower() in suffixes and not path.is_dir()]


def _scan(folder: Path, class_names: tuple[str, ...] | None) -> tuple[FileSplit, tuple[str, ...]]:
    files = image_files(folder, "*/**/*")
    if not files:
        from torchvision.datasets.folder import IMG_EXTENSIONS

        raise DataError(f"{folder}: no images; expected CLASS/*.jpg (or {', '.join(IMG_EXTENSIONS[1:])}) below it")
    names = class_names or _class_names({file.parts[0] for file in files})
    label_of = {name: label for label, name in enumerate(names)}
    unknown = sorted({file.parts[0] for file in files} - set(label_of))
    if unknown:
        raise DataError(f"{folder}: class folder {unknown[0]!r} does not exist in train/; both need the same classes")
    labels = np.array([label_of[file.parts[0]] for file in files], dtype=np.int64)
    return FileSplit(folder, tuple(file.as_posix() for file in files), labels), names


def _class_names(folders: set[str]) -> tuple[str, ...]:
    if all(_WORDNET.fullmatch(name) for name in folders):
        from timm.data import ImageNetInfo

        synsets = tuple(ImageNetInfo().label_names())
        if folders <= set(synsets):
            return synsets
    return tuple(sorted(folders))


def _image_data(
    path: str, names: tuple[str, ...], train: FileSplit | None, test: FileSplit, validation: FileSplit | None
) -> DataSet:
    return DataSet(
        name=f"folder:{path}",
        class_names=names,
        channels=3,
        image_size=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        train=train,
        test=test,
        validation=validation,
    )
