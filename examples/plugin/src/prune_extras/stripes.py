"""A data set: grey images of stripes in four directions, drawn from a fixed seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunecli.data.splits import ArraySplit, DataSet
from prunecli.errors import DataError

_CLASSES = ("horizontal", "vertical", "falling", "rising")
_SIZE, _IMAGES = 12, 400


def load(name: str, root: Path, download: bool) -> DataSet:
    """Draws the images.

    Args:
        name: "stripes", or the number of training images in `stripes:NUMBER`.
        root: Not used: nothing is read.
        download: Not used.

    Raises:
        DataError: What follows the colon is not a number.
    """
    if name != "stripes" and not name.isdecimal():
        raise DataError(f"stripes:{name}: give a number of images, for instance stripes:200")
    images = int(name) if name.isdecimal() else _IMAGES
    return DataSet(
        name="stripes" if name == "stripes" else f"stripes:{name}",
        class_names=_CLASSES,
        channels=1,
        image_size=(_SIZE, _SIZE),
        mean=(0.5,),
        std=(0.35,),
        flip=False,
        train=_drawn(images, seed=0),
        test=_drawn(100, seed=1),
    )


def _drawn(count: int, seed: int) -> ArraySplit:
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % len(_CLASSES)
    rows, columns = np.mgrid[:_SIZE, :_SIZE]
    directions = np.stack([rows, columns, rows - columns, rows + columns])[labels]
    phases = generator.integers(0, 4, size=(count, 1, 1))
    waves = 128 + 100 * np.sin((directions + phases) * np.pi / 2)
    noisy = waves + generator.normal(0, 30, size=waves.shape)
    return ArraySplit(noisy.clip(0, 255).astype(np.uint8), labels)
