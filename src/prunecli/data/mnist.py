"""MNIST and Fashion-MNIST in torchvision's layout; compressed idx files are read as they are."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from prunecli.data.splits import ArraySplit, DataSet, too_large
from prunecli.errors import DataError
from prunecli.measure.environment import memory_bytes

_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_NAMES = ("{}-images-idx3-ubyte", "{}-labels-idx1-ubyte")
_STATISTICS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}


def load(name: str, root: Path, download: bool) -> DataSet:
    """Reads `root/MNIST/raw` or `root/FashionMNIST/raw`. The test images can be used without the training files.

    Raises:
        DataError: The files are missing or damaged.
    """
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    folder = root / _FOLDERS[name] / "raw"
    if download:
        try:
            kind(str(root), download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(f"{name} could not be downloaded to {root}: {error}") from error
    files = {part: _files(folder, part) for part in ("train", "t10k")}
    missing = {part: _not_found(folder, part, name) for part, found in files.items() if found is None}
    if files["t10k"] is None:
        raise DataError(next(iter(missing.values())))
    mean, std = _STATISTICS[name]
    return DataSet(
        name=name,
        class_names=tuple(kind.classes),
        channels=1,
        image_size=(28, 28),
        mean=(mean,),
        std=(std,),
        flip=name == "fashion-mnist",
        train=None if files["train"] is None else _read_split(folder, "train", files["train"]),
        test=_read_split(folder, "t10k", files["t10k"]),
        missing=missing.get("train", ""),
    )


def _files(folder: Path, prefix: str) -> tuple[Path, ...] | None:
    """Images and labels of one part, as they are or compressed; None if one of the two is missing."""
    found = []
    for name in _NAMES:
        plain = folder / name.format(prefix)
        found += [path for path in (plain, plain.with_name(plain.name + ".gz")) if path.is_file()][:1]
    return tuple(found) if len(found) == len(_NAMES) else None


def _not_found(folder: Path, prefix: str, name: str) -> str:
    """Error message for a part that `_files` does not find."""
    plain = (folder / pattern.format(prefix) for pattern in _NAMES)
    first = next(path for path in plain if not (path.is_file() or path.with_name(path.name + ".gz").is_file()))
    return (
        f"{name}: neither {first} nor {first.name}.gz exists; add --download, or name the folder above "
        f"{_FOLDERS[name]} with --data-root or PRUNE_DATA"
    )


def _read_split(folder: Path, prefix: str, files: tuple[Path, ...]) -> ArraySplit:
    images, labels = (_read_idx(file) for file in files)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{folder}/{prefix}-*: {len(images)} images and {len(labels)} labels; fetch the files again")
    return ArraySplit(images, labels.astype(np.int64))


def _read_idx(file: Path) -> NDArray[np.uint8]:
    try:
        with file.open("rb") as raw:
            return _read_array(gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw, file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged ({error}); fetch it again") from error


def _read_array(stream: BinaryIO | gzip.GzipFile, file: Path) -> NDArray[np.uint8]:
    """Reads what the header announces, and checks that nothing follows; a small file cannot unpack to any size."""
    head = stream.read(4)
    if len(head) < 4 or head[:3] != b"\x00\x00\x08":
        raise DataError(f"{file}: not an idx file of unsigned bytes; fetch it again")
    sizes = stream.read(4 * head[3])
    shape = struct.unpack(f">{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4])
    announced = math.prod(shape)
    if announced > memory_bytes():
        raise DataError(f"{file}: {too_large(announced)}; fetch it again")
    content = stream.read(announced)
    if len(sizes) < 4 * head[3] or len(content) < announced or stream.read(1):
        actual = "more" if len(content) == announced else f"{len(content)}"
        raise DataError(f"{file}: {actual} bytes of data where its header announces {shape}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
