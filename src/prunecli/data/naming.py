"""From a path to the data set that lies there: how it has to be read is found from names of folders and files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from prunecli.data.event_files import SUFFIXES as RECORDINGS
from prunecli.data.mask_layouts import mask_folders
from prunecli.data.splits import SPLIT_NAMES
from prunecli.data.text_files import PLAIN
from prunecli.data.text_tables import SUFFIXES as TABLES
from prunecli.data.text_tables import is_table
from prunecli.errors import DataError

_IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
_PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_PARTS = tuple(word for words in SPLIT_NAMES.values() for word in words)
_PUBLISHED = {
    "cifar-10-batches-py": "cifar10",
    "cifar-100-python": "cifar100",
    "MNIST": "mnist",
    "FashionMNIST": "fashion-mnist",
}
"""Folders that torchvision makes in a data folder, and what they hold."""
_COCO = re.compile("coco|annotation|instances")
_LOOKED_AT = 1000
"""Entries of a folder, at most: one with a million files is not listed for this."""
_READ_AS = {
    "folder": "one folder of images per class",
    "images": "images without classes",
    "segmentation": "images with masks",
    "detection": "images with boxes",
    "wds": "tar files",
    "events": "recordings of events",
    "text": "texts",
}


def named_data(name: str) -> str:
    """The name of a data set that is given as a path alone.

    Args:
        name: "./images" or "texts.csv".

    Returns:
        "folder:./images" or "text:texts.csv"; what does not exist, as it is.

    Raises:
        DataError: Nothing at the path can be read, or in several ways.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _named_file(name, path)
    if not path.is_dir():
        return name
    kinds = list(_kinds(path))
    if len(kinds) == 1:
        return f"{kinds[0]}:{name}"
    if kinds:
        choices = " or ".join(f"{kind}:{name} ({_READ_AS[kind]})" for kind in kinds)
        raise DataError(f"{name}: can be read in several ways; write {choices}")
    raise DataError(f"{name}: {_unread(name, path)}")


def _named_file(name: str, path: Path) -> str:
    suffix, parent = path.suffix.lower(), path.parent
    if suffix in (*PLAIN[1:], ".conll") or is_table(path):
        return f"text:{name}"
    if suffix in _PACKED:
        raise DataError(f"{name}: is packed; unpack it and give the folder")
    if suffix == ".tar":
        raise DataError(f"{name}: is one tar file; write wds:{parent} for samples in tar files, else unpack it")
    if suffix in _IMAGES:
        raise DataError(f"{name}: is one image; give the folder, as images:{parent} (without classes)")
    if suffix in (".json", ".yaml", ".yml"):
        raise DataError(f"{name}: if it describes boxes in images, give their folder, as detection:{parent}")
    raise DataError(
        f"{name}: no kind of data set is a {suffix or 'plain'} file; arrays are read from .npz, texts from "
        f"{', '.join((*PLAIN[1:], *TABLES))}, images from folders"
    )


def _kinds(folder: Path) -> Iterator[str]:
    """How a folder can be read."""
    masks = any(_has(inside, _IMAGES) for inside in mask_folders(folder))
    boxes = _has_boxes(folder)
    if masks:
        yield "segmentation"
    if boxes:
        yield "detection"
    if any(_has(place, (".tar",)) for place in _with_parts(folder)):
        yield "wds"
    if masks or boxes:  # whose folders are no classes
        return
    inside = [below for place in _class_folders(folder) for below in (place, *islice(_folders(place), 20))]
    if any(_has(place, _IMAGES) for place in inside):
        yield "folder"
    elif _has(folder, _IMAGES):
        yield "images"
    if any(_has(place, RECORDINGS) for place in inside):
        yield "events"
    texts = [file for file in _files(folder) if file.suffix.lower() in PLAIN[1:] or is_table(file)]
    if any(set(file.name.lower().replace("-", ".").replace("_", ".").split(".")) & set(_PARTS) for file in texts):
        yield "text"


def _has_boxes(folder: Path) -> bool:
    if (folder / "JPEGImages").is_dir() and _has(folder / "Annotations", (".xml",)):
        return True
    if any(_has_coco(place) for place in (*_with_parts(folder), *islice(_folders(folder), 20))):
        return any(_has(place, _IMAGES) for place in (*_with_parts(folder), *islice(_folders(folder), 20)))
    labels = [place / "labels" for place in _with_parts(folder) if (place / "images").is_dir()]
    return any(_has(inside, (".txt",)) for place in labels for inside in _with_parts(place))


def _has_coco(folder: Path) -> bool:
    """Whether there are lists of boxes in JSON files: of any name in `annotations`, else of a telling one."""
    if _has(folder / "annotations", (".json",)):
        return True
    return any(file.suffix == ".json" and _COCO.search(file.name.lower()) for file in _files(folder))


def _class_folders(folder: Path) -> Iterator[Path]:
    """The first folders that would be classes."""
    parts = [folder / part for part in _PARTS if (folder / part).is_dir()]
    for place in parts or [folder]:
        yield from islice(_folders(place), 20)


def _with_parts(folder: Path) -> list[Path]:
    return [folder, *(folder / part for part in _PARTS)]


def _has(folder: Path, suffixes: tuple[str, ...]) -> bool:
    return any(file.suffix.lower() in suffixes for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (entry for entry in _entries(folder) if entry.is_file() and not entry.name.startswith("."))


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from islice(folder.iterdir(), _LOOKED_AT)


def _unread(name: str, folder: Path) -> str:
    """What to do about a folder that cannot be read in any way."""
    for inside, known in _PUBLISHED.items():
        if (folder / inside).is_dir():
            return f"holds {inside}; write {known}, with --data-root {name}"
        if folder.resolve().name == inside:
            return f"is the folder of {known}; write {known}, with --data-root {folder.resolve().parent}"
    if (folder / "config.json").is_file():
        return f"looks like the folder of a network, which is named as MODEL: hf:{name}"
    if next(_entries(folder), None) is None:
        return "is an empty folder"
    expected = ", ".join(f"{kind}: ({text})" for kind, text in _READ_AS.items())
    return f"nothing in this folder looks like data; what is read is named by {expected}; see docs/data.md"
