"""MNIST and Fashion-MNIST in torchvision's layout; compressed idx files are read as they are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunecli.data.splits import ArraySplit, ImageData
from prunecli.errors import DataError

_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_STATISTICS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}


def load(name: str, root: Path, download: bool) -> ImageData:
    """Reads `root/MNIST/raw` or `root/FashionMNIST/raw`.

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
    train = _read_split(folder, "train", name)
    mean, std = _STATISTICS[name]
    return ImageData(
        name=name,
        class_names=tuple(kind.classes),
        channels=1,
        image_size=(28, 28),
        mean=(mean,),
        std=(std,),
        flip=name == "fashion-mnist",
        train=train,
        test=_read_split(folder, "t10k", name),
    )


def _read_split(folder: Path, prefix: str, name: str) -> ArraySplit:
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", name)
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", name)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(f"{folder}/{prefix}-*: {len(images)} images and {len(labels)} labels; fetch the files again")
    return ArraySplit(images, labels.astype(np.int64))


def _read_idx(path: Path, name: str) -> NDArray[np.uint8]:
    packed = path.with_name(path.name + ".gz")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{name}: neither {path} nor {packed.name} exists; add --download, or name the folder above "
            f"{_FOLDERS[name]} with --data-root or PRUNE_DATA"
        ) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{packed}: damaged ({error}); fetch it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an idx file of unsigned bytes; fetch it again")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank]) if len(content) >= 4 + 4 * rank else (-1,)
    body = np.frombuffer(content, dtype=np.uint8, offset=min(len(content), 4 + 4 * rank))
    if body.size != int(np.prod(shape)):
        raise DataError(f"{path}: {body.size} bytes of data where its header announces {shape}; fetch it again")
    return body.reshape(shape)
