"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), in torchvision's layout or the official binary layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunecli.data.splits import ArraySplit, DataSet, concatenate, read_lines
from prunecli.errors import DataError

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def load(name: str, root: Path, download: bool) -> DataSet:
    """Reads CIFAR from `root`.

    The binary layout (`cifar-10-batches-bin/data_batch_*.bin`) may be a subset: any of the training files, and files
    with fewer records. In both layouts the test images can be used without the training files.

    Raises:
        DataError: Neither layout is there, or a file is damaged.
    """
    fine = name == "cifar100"
    binary = root / ("cifar-100-binary" if fine else "cifar-10-batches-bin")
    if binary.is_dir():
        return _from_binary(name, binary, fine)
    return _from_torchvision(name, root, download)


def _from_binary(name: str, folder: Path, fine: bool) -> DataSet:
    train_files = [p for p in sorted(folder.glob("train.bin" if fine else "data_batch_*.bin")) if p.is_file()]
    test_file = folder / ("test.bin" if fine else "test_batch.bin")
    names_file = folder / ("fine_label_names.txt" if fine else "batches.meta.txt")
    expected = f"not found; the binary layout of {name} has training files and a test file"
    if not test_file.is_file():
        raise DataError(f"{test_file}: {expected}")
    if names_file.is_file():
        class_names = tuple(read_lines(names_file))
    else:
        class_names = tuple(str(label) for label in range(100 if fine else 10))
    test = _read_records(test_file, fine, len(class_names))
    if not train_files:
        pattern = "train.bin" if fine else "data_batch_*.bin"
        return _image_data(name, class_names, None, test, missing=f"{folder / pattern}: {expected}")
    train = concatenate([_read_records(path, fine, len(class_names)) for path in train_files])
    return _image_data(name, class_names, train, test)


def _read_records(path: Path, fine: bool, classes: int) -> ArraySplit:
    head = 2 if fine else 1  # a coarse label comes before the fine one
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size == 0 or raw.size % (head + 3072):
        raise DataError(f"{path}: {raw.size} bytes is not a whole number of {head + 3072}-byte records; fetch it again")
    records = raw.reshape(-1, head + 3072)
    labels = records[:, head - 1].astype(np.int64)
    if labels.max() >= classes:
        raise DataError(f"{path}: label {labels.max()} is outside the {classes} classes; fetch it again")
    images = records[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySplit(np.ascontiguousarray(images), labels)


def _from_torchvision(name: str, root: Path, download: bool) -> DataSet:
    from torchvision import datasets

    kind = datasets.CIFAR100 if name == "cifar100" else datasets.CIFAR10
    if download:
        _open(kind, name, root, True, download=True)
    # torchvision wants the files of both parts, whichever is read; each part alone is complete with its own.
    test, class_names = _open(_part(kind, train=False), name, root, False)
    try:
        train, _ = _open(_part(kind, train=True), name, root, True)
    except DataError:
        files = f"the training files of {name} are not in {root / kind.base_folder}, or differ from the published ones"
        return _image_data(name, class_names, None, test, missing=f"{files}; add --download")
    return _image_data(name, class_names, train, test)


def _part(kind: type[Any], *, train: bool) -> type[Any]:
    """torchvision's class, knowing the files of one part only."""
    return type(kind.__name__, (kind,), {"test_list" if train else "train_list": []})


def _open(
    kind: type[Any], name: str, root: Path, train: bool, *, download: bool = False
) -> tuple[ArraySplit, tuple[str, ...]]:
    """One part and the names of the classes."""
    try:
        # torchvision compares checksums before it unpickles, so no altered file is opened.
        part = kind(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name} is not in {root} (looked for {kind.base_folder} and the official binary layout); "
            "add --download, or name its folder with --data-root or PRUNE_DATA"
        ) from error
    split = ArraySplit(np.asarray(part.data, dtype=np.uint8), np.asarray(part.targets, dtype=np.int64))
    return split, tuple(part.classes)


def _image_data(
    name: str, class_names: tuple[str, ...], train: ArraySplit | None, test: ArraySplit, *, missing: str = ""
) -> DataSet:
    return DataSet(name, class_names, 3, (32, 32), _MEAN, _STD, True, train, test, missing=missing)
