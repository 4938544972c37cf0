"""`npz:FILE` or a path ending in .npz: arrays in one NumPy file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunecli.data.splits import ArraySplit, ImageData
from prunecli.errors import DataError

_KEYS = (
    ("x_{}", "y_{}"),
    ("{}_images", "{}_labels"),
    ("{}_x", "{}_y"),
)


def load(path: str, root: Path, download: bool) -> ImageData:
    """Reads uint8 images (N, H, W) or (N, H, W, 3) and integer labels under x_train/y_train, train_images/train_labels
    or train_x/train_y, with the same for `test` and, if there is one, `val`.

    Raises:
        DataError: The file is missing, is not npz, or its arrays do not fit.
    """
    given = Path(path).expanduser()
    file = next((p for p in (given, root / given) if p.is_file()), None)
    if file is None:
        raise DataError(f"{path}: no such file; give a .npz file with x_train, y_train, x_test and y_test")
    try:
        with np.load(file, allow_pickle=False) as opened:
            arrays = {key: opened[key] for key in opened.files}
    except Exception as error:  # zip, header and pickle errors each have a type of their own
        raise DataError(f"{file}: not a readable .npz of plain arrays ({error})") from error
    train, test, validation = (_split(arrays, part, file) for part in ("train", "test", "val"))
    if test is None:
        raise DataError(
            f"{file}: holds {', '.join(arrays) or 'nothing'}; expected x_test and y_test (and x_train, y_train)"
        )
    parts = [part for part in (train, test, validation) if part is not None]
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"{file}: its splits have images of different shapes {sorted(shapes)}")
    shape = shapes.pop()
    channels = 1 if len(shape) == 2 else 3
    classes = 1 + max(int(part.labels.max()) for part in parts)
    pixels = (train or test).images.reshape(-1, channels) / 255.0
    return ImageData(
        name=f"npz:{path}",
        class_names=tuple(str(label) for label in range(classes)),
        channels=channels,
        image_size=(shape[0], shape[1]),
        mean=tuple(float(value) for value in pixels.mean(axis=0)),
        std=tuple(float(max(value, 1e-3)) for value in pixels.std(axis=0)),
        flip=False,
        train=train,
        test=test,
        validation=validation,
    )


def _split(arrays: dict[str, np.ndarray], part: str, file: Path) -> ArraySplit | None:
    for image_key, label_key in _KEYS:
        images, labels = arrays.get(image_key.format(part)), arrays.get(label_key.format(part))
        if images is None or labels is None:
            continue
        if images.ndim == 4 and images.shape[-1] == 1:
            images = images[..., 0]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            found = f"{images.dtype}{images.shape}"
            raise DataError(f"{file}: {image_key.format(part)} is {found}; expected uint8 (N, H, W) or (N, H, W, 3)")
        labels = labels.reshape(-1)
        if len(labels) != len(images) or len(images) == 0:
            raise DataError(f"{file}: {part} has {len(images)} images and {len(labels)} labels")
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise DataError(f"{file}: {label_key.format(part)} must hold class indices from 0")
        return ArraySplit(images, labels.astype(np.int64))
    return None
