"""All data sets by name: a built-in one is a file with a `load` function and one line here. Torch-free.

An installed package adds its own with an entry point in the group `prunecli.data` that names a `DataModule`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from prunecli.errors import DataError, unknown
from prunecli.registry import Registry

if TYPE_CHECKING:
    from prunecli.data.mask_labels import MaskReading
    from prunecli.data.splits import DataSet
    from prunecli.data.text_reading import TextReading

_SampleKind: TypeAlias = Literal["images", "recordings", "tokens"]


class DataModule(Protocol):
    """What brings a data set: a module, or an object, with a `load` function.

    One whose samples are recordings of events also has `SAMPLES = "recordings"`, one of texts `SAMPLES = "tokens"`.
    """

    def load(self, name: str, root: Path, download: bool, /) -> DataSet:
        """Reads the data set.

        Args:
            name: What follows the colon in "NAME:ARGUMENT", else the name itself.
            root: The data folder.
            download: Whether missing files may be fetched.

        Raises:
            DataError: Files are missing or damaged.
        """
        ...


@dataclass(frozen=True)
class _Entry:
    """A built-in data set.

    Attributes:
        module: A `DataModule`.
        summary: One line for help and completion.
        samples: What it has.
        argument: Whether a path follows the name: never, always, or may be left out to mean the data folder.
    """

    module: str
    summary: str
    samples: _SampleKind = "images"
    argument: Literal["none", "required", "optional"] = "none"


_MASKS = "segmentation"
_TEXTS = "text"
_EVENTS = "prunecli.data.event_sets"
_BUILT_IN: dict[str, _Entry] = {
    "digits": _Entry("prunecli.data.digits", "1,797 digits of 8x8 pixels from scikit-learn; nothing to download"),
    "cifar10": _Entry("prunecli.data.cifar", "CIFAR-10, 32x32"),
    "cifar100": _Entry("prunecli.data.cifar", "CIFAR-100, 32x32"),
    "mnist": _Entry("prunecli.data.mnist", "MNIST digits, 28x28"),
    "fashion-mnist": _Entry("prunecli.data.mnist", "Fashion-MNIST, 28x28"),
    "cluttered-mnist": _Entry("prunecli.data.clutter", "MNIST digits among pieces of other digits, 48x48"),
    "mnist-boxes": _Entry("prunecli.data.digit_boxes", "MNIST digits of many sizes with boxes, in clutter, 96x96"),
    "n-mnist": _Entry(_EVENTS, "N-MNIST, events of digits, 34x34", "recordings"),
    "cifar10-dvs": _Entry(_EVENTS, "CIFAR10-DVS, events of moved images, 128x128", "recordings"),
    "dvs-gesture": _Entry(_EVENTS, "DVS128 Gesture, events of 11 gestures, 128x128", "recordings"),
    "n-caltech101": _Entry(_EVENTS, "N-Caltech101, events of objects, 180x240", "recordings"),
    "events": _Entry(_EVENTS, "events:PATH, recordings of events, one folder per class", "recordings", "optional"),
    "folder": _Entry("prunecli.data.folder", "folder:PATH, one folder per class", argument="optional"),
    "images": _Entry("prunecli.data.unlabelled", "images:PATH, images without classes; for token", argument="optional"),
    "module": _Entry(
        "prunecli.data.own", "module:package.file:function, data sets of a function of yours", argument="required"
    ),
    "npz": _Entry("prunecli.data.npz", "npz:FILE, arrays in one NumPy file", argument="required"),
    "segmentation": _Entry(
        "prunecli.data.segmentation",
        "segmentation:PATH, images with masks (CamVid, ADE20K, VOC, plain)",
        argument="optional",
    ),
    "detection": _Entry(
        "prunecli.data.detection", "detection:PATH, images with boxes (COCO, YOLO, Pascal VOC)", argument="optional"
    ),
    "text": _Entry(
        "prunecli.data.text",
        "text:PATH, texts in files, or in tables (.jsonl, .csv, .parquet) with classes or without",
        "tokens",
        argument="required",
    ),
    "wds": _Entry("prunecli.data.webdataset", "wds:PATH, tar files in CLIP_benchmark's layout", argument="optional"),
}
DATASETS: Registry[DataModule] = Registry(
    "data set", "prunecli.data", {name: entry.module for name, entry in _BUILT_IN.items()}, DataError
)


def named_datasets() -> list[str]:
    """Names of data sets that need no path; nothing is imported."""
    return [name for name in DATASETS.names if name not in _BUILT_IN or _BUILT_IN[name].argument == "none"]


def described_datasets() -> list[tuple[str, str]]:
    """Every name with a line about it; one that a path may follow ends in a colon. Nothing is imported."""
    built_in = [(name + ("" if e.argument == "none" else ":"), e.summary) for name, e in _BUILT_IN.items()]
    added = [name for name in DATASETS.names if name not in _BUILT_IN]
    return built_in + [(f"{name}{end}", f"from {DATASETS.package(name)}") for name in added for end in ("", ":")]


ROOT_VARIABLE = "PRUNE_DATA"
"""Variable of the environment that names the data folder."""


def default_root() -> Path:
    """The data folder: PRUNE_DATA, else ~/.cache/prune/data."""
    return Path(os.environ.get(ROOT_VARIABLE) or "~/.cache/prune/data").expanduser()


def load_data(
    name: str,
    root: Path | None = None,
    *,
    download: bool = False,
    masks: MaskReading | None = None,
    text: TextReading | None = None,
) -> DataSet:
    """Loads a data set by name, or `folder:PATH` and the like, or a path ending in .npz.

    Args:
        name: For instance "cifar10".
        root: Where named sets lie, and what `folder` and the like read without a path; default `default_root()`.
        download: Whether a missing set may be fetched, where torchvision knows how.
        masks: What the values in masks mean, where the set has masks in files.
        text: How a text becomes tokens, where the set is one.

    Raises:
        DataError: There is no such set, it has no masks to read in another way, or it is missing or damaged.
    """
    known, argument = find_data(name)
    folder = root or default_root()
    if known == _MASKS:
        from prunecli.data import segmentation

        return segmentation.load(argument or str(folder.absolute()), folder, download, masks)
    if masks is not None and masks.declared:
        raise DataError(f"{name}: --classes, --void and --reduce-zero-label are for masks: {_MASKS}:PATH")
    if known == _TEXTS:
        from prunecli.data import text as texts

        return texts.load(argument, folder, download, text)
    module = DATASETS.load(known)
    if known in _BUILT_IN:
        return module.load(argument or str(folder.absolute()), folder, download)
    if not callable(getattr(module, "load", None)):
        raise DataError(
            f"data set {known!r} of package {DATASETS.package(known)} has no function load(name, root, download)"
        )
    # Checkpoints and reports record this name, and the data set is loaded again by it.
    return replace(module.load(argument, folder, download), name=name)


def samples_of(name: str) -> _SampleKind:
    """What a data set has, by its name; nothing is read.

    Raises:
        DataError: There is no such set.
    """
    known, _ = find_data(name)
    if known in _BUILT_IN:
        return _BUILT_IN[known].samples
    kind = getattr(DATASETS.load(known), "SAMPLES", None)
    return kind if kind in ("recordings", "tokens") else "images"


def find_data(name: str) -> tuple[str, str]:
    """The data set's name in the catalogue, and what its `load` is given (nothing: the data folder).

    Raises:
        DataError: There is no such set.
    """
    known, colon, argument = name.partition(":")
    if not colon and name.endswith(".npz"):
        return "npz", name
    if colon and not argument:
        raise _no_such(name)
    if known in _BUILT_IN:
        allowed = _BUILT_IN[known].argument
        if allowed == ("none" if colon else "required"):
            raise _no_such(name)
        return known, name if allowed == "none" else argument
    if known in DATASETS.names:
        return known, argument or name
    raise _no_such(name)


def is_named(name: str) -> bool:
    """Whether the name says which data set it is, by itself or before its colon; nothing is read or imported."""
    return name.partition(":")[0] in DATASETS.names or name.endswith(".npz")


def _no_such(name: str) -> DataError:
    folder = Path(name).expanduser()
    if ":" not in name and folder.is_dir():
        return DataError(
            f"data set {name!r} is a folder: say how to read it, as folder:{name} (one folder per class), "
            f"images:{name} (no classes), segmentation:{name} (masks), detection:{name} (boxes), "
            f"wds:{name} (tar files) or events:{name}"
        )
    if ":" not in name and ("/" in name or os.sep in name):
        return DataError(f"data set {name!r}: no such folder; give folder:PATH with the path of one, or a name")
    paths = [f"{known}:..." for known, entry in _BUILT_IN.items() if entry.argument != "none"]
    return DataError(unknown("data set", name, [*named_datasets(), *paths]))
