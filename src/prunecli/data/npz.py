"""`npz:FILE` or a path ending in .npz: arrays in one NumPy file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.data.array_files import member_bytes
from prunecli.data.splits import ArraySplit, DataSet, too_large
from prunecli.errors import DataError
from prunecli.measure.environment import memory_bytes

_PIXELS_AT_ONCE = 2**20
"""Pixels whose values are counted at a time."""

_MAX_CLASSES = 1_000_000
_KEYS = (
    ("x_{}", "y_{}"),
    ("{}_images", "{}_labels"),
    ("{}_x", "{}_y"),
)


def load(path: str, root: Path, download: bool) -> DataSet:
    """Reads uint8 images (N, H, W) or (N, H, W, 3) and integer labels under x_train/y_train, train_images/train_labels
    or train_x/train_y, with the same for `test` and, if there is one, `val`.

    Raises:
        DataError: The file is missing, is not a .npz file, or its arrays do not fit together.
    """
    relative = Path(path).expanduser()
    file = next((candidate for candidate in (relative, root / relative) if candidate.is_file()), None)
    if file is None:
        raise DataError(f"{path}: no such file; give a .npz file with x_train, y_train, x_test and y_test")
    arrays, names = _read(file)
    train, test, validation = (_split(arrays, part, file) for part in ("train", "test", "val"))
    if test is None:
        raise DataError(
            f"{file}: holds {', '.join(names) or 'nothing'}; expected x_test and y_test (and x_train, y_train)"
        )
    parts = [part for part in (train, test, validation) if part is not None]
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"{file}: its splits have images of different shapes {sorted(shapes)}")
    shape = shapes.pop()
    channels = 1 if len(shape) == 2 else 3
    mean, std = _statistics((train or test).images.reshape(-1, channels))
    classes = 1 + max(int(part.labels.max()) for part in parts)
    if classes > _MAX_CLASSES:
        raise DataError(
            f"{file}: holds the label {classes - 1:,}; labels are class numbers from 0, up to {_MAX_CLASSES:,}"
        )
    return DataSet(
        name=f"npz:{path}",
        class_names=tuple(str(label) for label in range(classes)),
        channels=channels,
        image_size=(shape[0], shape[1]),
        mean=mean,
        std=std,
        flip=False,
        train=train,
        test=test,
        validation=validation,
    )


def _read(file: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The arrays that make up splits, and the names of all arrays in the file."""
    keys = {key.format(part) for pair in _KEYS for key in pair for part in ("train", "test", "val")}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            claimed = sum(member_bytes(archive, members[key]) for key in keys & set(members))
            if claimed > memory_bytes():
                raise DataError(f"{file}: {too_large(claimed)}; divide it, or use a folder of image files")
            arrays = {}
            for key in keys & set(members):
                with archive.open(members[key]) as stream:
                    arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # zip, header and pickle errors each have a type of their own
        raise DataError(f"{file}: not a readable .npz of plain arrays ({error})") from error
    return arrays, list(members)


def _statistics(pixels: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column in 0..1, from counts; floats would take eight times the memory."""
    counts = np.zeros((pixels.shape[1], 256))
    for start in range(0, len(pixels), _PIXELS_AT_ONCE):
        for channel, values in enumerate(pixels[start : start + _PIXELS_AT_ONCE].T):
            counts[channel] += np.bincount(values, minlength=256)
    levels = np.arange(256) / 255.0
    shares = counts / len(pixels)
    mean = shares @ levels
    std = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1e-3).tolist())


def _split(arrays: dict[str, np.ndarray], part: str, file: Path) -> ArraySplit | None:
    for image_key, label_key in _KEYS:
        images, labels = arrays.get(image_key.format(part)), arrays.get(label_key.format(part))
        if images is None or labels is None:
            continue
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            actual = f"{images.dtype}{images.shape}"
            raise DataError(f"{file}: {image_key.format(part)} is {actual}; expected uint8 (N, H, W) or (N, H, W, 3)")
        labels = labels.reshape(-1)
        if len(labels) != len(images) or len(images) == 0:
            raise DataError(f"{file}: {part} has {len(images)} images and {len(labels)} labels")
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise DataError(f"{file}: {label_key.format(part)} must hold class indices from 0")
        return ArraySplit(images, labels.astype(np.int64))
    return None
