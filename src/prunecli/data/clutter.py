"""`cluttered-mnist`: MNIST digits at random positions of a larger canvas, among pieces of other digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunecli.data import mnist
from prunecli.data.splits import SPLIT_SEED, ArraySplit, DataSet, Split, digest
from prunecli.errors import DataError

_CANVAS, _DIGIT, _PIECE = 48, 28, 8
"""Heights in pixels; widths are the same."""
_PIECES = 6
_MEAN, _STD = 0.0772, 0.2463
"""Of all pixels in 0..1 of the 60,000 training canvases."""


@dataclass(frozen=True, eq=False)
class ClutterSplit:
    """Canvases, drawn on access.

    Attributes:
        part: "train" or "test".
        digits: All digits of that part, uint8, shape (digits, 28, 28); pieces are cut from these as well.
        indices: Index in `digits` of each canvas's digit, shape (images,).
        labels: Class indices, shape (images,).
    """

    part: str
    digits: NDArray[np.uint8]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """The canvas at `index`; it depends only on the part and on its digit's index in that part."""
        number = int(self.indices[index])
        draws = _draws(self.part, number)
        canvas = np.zeros((_CANVAS, _CANVAS), dtype=np.uint8)
        _draw(canvas, self.digits[number], draws[:2])
        for piece in draws[2:].reshape(_PIECES, 5):
            other = int(piece[0] % (len(self.digits) - 1))
            digit = self.digits[other + (other >= number)]
            top, left = (int(draw % (_DIGIT - _PIECE + 1)) for draw in piece[1:3])
            _draw(canvas, digit[top : top + _PIECE, left : left + _PIECE], piece[3:])
        return Image.fromarray(canvas)

    def subset(self, indices: NDArray[np.int64]) -> ClutterSplit:
        """The canvases at `indices`, unchanged."""
        return ClutterSplit(self.part, self.digits, self.indices[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """Hash of what the canvases are made from; none is drawn."""
        rules = f"{_rules(self.part)} {_CANVAS} {_DIGIT} {_PIECE} {_PIECES}".encode()
        return digest(rules, np.ascontiguousarray(self.digits).data, self.indices.data, self.labels.data)


def load(name: str, root: Path, download: bool) -> DataSet:
    """Reads MNIST below `root`, downloading it if `download` is set; nothing else is needed.

    Each digit lies at a random position of a black canvas of 48x48 pixels, together with six pieces of 8x8 pixels that
    are cut from other digits of the same part. Where they overlap, the brighter pixel wins.

    Raises:
        DataError: The files of MNIST are missing or damaged.
    """
    digits = mnist.load("mnist", root, download)
    return replace(
        digits,
        name=name,
        image_size=(_CANVAS, _CANVAS),
        mean=(_MEAN,),
        std=(_STD,),
        train=None if digits.train is None else _clutter(name, "train", digits.train),
        test=_clutter(name, "test", digits.test),
    )


def _clutter(name: str, part: str, split: Split) -> ClutterSplit:
    assert isinstance(split, ArraySplit), "MNIST is read into memory"
    count, *size = split.images.shape
    if count < 2 or size != [_DIGIT, _DIGIT]:
        raise DataError(
            f"{name}: the {part} part of MNIST has {count} images of {'x'.join(map(str, size))}, expected at least 2 "
            f"of {_DIGIT}x{_DIGIT}; fetch its files again"
        )
    return ClutterSplit(part, split.images, np.arange(count), split.labels)


def _rules(part: str) -> str:
    return f"cluttered-mnist {SPLIT_SEED} {part}"


def _draws(part: str, number: int) -> NDArray[np.uint32]:
    """Position of the digit (2); for each piece its digit (1), where it is cut (2) and where it goes (2)."""
    # NumPy's generators may give other numbers in another version; a hash never does.
    count = 2 + 5 * _PIECES
    return np.frombuffer(hashlib.shake_128(f"{_rules(part)} {number}".encode()).digest(4 * count), dtype="<u4")


def _draw(canvas: NDArray[np.uint8], pixels: NDArray[np.uint8], position: NDArray[np.uint32]) -> None:
    height, width = pixels.shape
    top, left = int(position[0] % (_CANVAS - height + 1)), int(position[1] % (_CANVAS - width + 1))
    region = canvas[top : top + height, left : left + width]
    np.maximum(region, pixels, out=region)
