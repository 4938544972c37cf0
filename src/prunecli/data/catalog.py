"""All data sets by name. A new one is a file with a `load` function and one line here."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.errors import DataError, unknown

if TYPE_CHECKING:
    from prunecli.data.splits import ImageData

EVENTS = "prunecli.data.event_sets"
DATASETS: dict[str, tuple[str, str]] = {
    "digits": ("prunecli.data.digits", "1,797 digits of 8x8 pixels from scikit-learn; nothing to download"),
    "cifar10": ("prunecli.data.cifar", "CIFAR-10, 32x32"),
    "cifar100": ("prunecli.data.cifar", "CIFAR-100, 32x32"),
    "mnist": ("prunecli.data.mnist", "MNIST digits, 28x28"),
    "fashion-mnist": ("prunecli.data.mnist", "Fashion-MNIST, 28x28"),
    "cluttered-mnist": ("prunecli.data.clutter", "MNIST digits among pieces of other digits, 48x48"),
    "n-mnist": (EVENTS, "N-MNIST, events of digits, 34x34"),
    "cifar10-dvs": (EVENTS, "CIFAR10-DVS, events of moved images, 128x128"),
    "dvs-gesture": (EVENTS, "DVS128 Gesture, events of 11 gestures, 128x128"),
    "n-caltech101": (EVENTS, "N-Caltech101, events of objects, 180x240"),
}
PREFIXES: dict[str, tuple[str, str]] = {
    "events": (EVENTS, "events:PATH, recordings of events, one folder per class"),
    "folder": ("prunecli.data.folder", "folder:PATH, one folder per class"),
    "images": ("prunecli.data.unlabelled", "images:PATH, images without classes; for token"),
    "npz": ("prunecli.data.npz", "npz:FILE, arrays in one NumPy file"),
    "segmentation": ("prunecli.data.segmentation", "segmentation:PATH, images with masks (CamVid, ADE20K, VOC, plain)"),
    "wds": ("prunecli.data.webdataset", "wds:PATH, tar files in CLIP_benchmark's layout"),
}
FOLDERS = ("events", "folder", "images", "segmentation", "wds")
"""Prefixes that may stand alone: the data folder itself is then the set."""


def default_root() -> Path:
    """The data folder: PRUNE_DATA, else ~/.cache/prune/data."""
    return Path(os.environ.get("PRUNE_DATA") or "~/.cache/prune/data").expanduser()


def load_data(name: str, root: Path | None = None, *, download: bool = False) -> ImageData:
    """Loads a data set by name, or `folder:PATH` and the like, or a path ending in .npz.

    Args:
        name: For instance "cifar10".
        root: Where named sets lie, or what `FOLDERS` without a path read; default `default_root()`.
        download: Whether a missing set may be fetched, where torchvision knows how.

    Raises:
        DataError: There is no such set, or it is missing or damaged.
    """
    module, argument = find_data(name)
    place = root or default_root()
    data: ImageData = import_module(module).load(argument or str(place.absolute()), place, download)
    return data


def holds_events(name: str) -> bool:
    """Whether a data set has recordings of events, not images; nothing is read.

    Raises:
        DataError: There is no such set.
    """
    return find_data(name)[0] == EVENTS


def find_data(name: str) -> tuple[str, str]:
    """The module that reads a data set, and what it is given (nothing: the data folder).

    Raises:
        DataError: There is no such set.
    """
    prefix, colon, rest = name.partition(":")
    if not colon and name.endswith(".npz"):
        prefix, rest = "npz", name
    if name in DATASETS:
        return DATASETS[name][0], name
    if (prefix in PREFIXES and rest) or (name in FOLDERS and not colon):
        return PREFIXES[prefix][0], rest
    raise DataError(unknown("data set", name, [*DATASETS, *(f"{known}:..." for known in PREFIXES)]))
