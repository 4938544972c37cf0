"""`mnist-boxes`: MNIST digits of many sizes with boxes around them, among pieces of other digits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunecli.data import mnist
from prunecli.data.boxes import Objects
from prunecli.data.splits import SPLIT_SEED, ArraySplit, DataSet, Split, digest
from prunecli.errors import DataError

_CANVAS, _DIGIT, _PIECE = 96, 28, 8
"""Heights in pixels; widths are the same."""
_IMAGES = {"train": 4000, "test": 1000}
_MOST, _PIECES = 4, 12
_SMALLEST, _LARGEST = 20, 44
"""Height of a digit's square, which is 28 in MNIST."""
_TRIES = 12
"""Places that are tried for a digit before it is left out."""
_INK = 64
"""A pixel as bright as this belongs to a digit; MNIST's strokes have soft edges."""
_MEAN, _STD = 0.0539, 0.2084
"""Of all pixels in 0..1 of the training canvases."""


@dataclass(frozen=True, eq=False)
class DigitBoxes:
    """Canvases, drawn on access.

    Attributes:
        part: "train" or "test".
        digits: All digits of that part, uint8, shape (digits, 28, 28).
        classes: Their classes, shape (digits,).
        numbers: Numbers of the canvases.
    """

    part: str
    digits: NDArray[np.uint8]
    classes: NDArray[np.int64]
    numbers: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Zeros of shape (images,): a canvas has no class of its own."""
        return np.zeros(len(self.numbers), dtype=np.int64)

    def annotated(self, index: int) -> tuple[Image.Image, Objects]:
        """The canvas at `index` and its digits; they depend only on the part and on the canvas's number."""
        draws = _draws(self.part, int(self.numbers[index]))
        canvas = np.zeros((_CANVAS, _CANVAS), dtype=np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        for _ in range(1 + next(draws) % _MOST):
            number, side = next(draws) % len(self.digits), _SMALLEST + next(draws) % (_LARGEST - _SMALLEST + 1)
            positions = np.arange(side) * _DIGIT // side
            digit = self.digits[number][positions][:, positions]
            places = [(next(draws) % (_CANVAS - side + 1), next(draws) % (_CANVAS - side + 1)) for _ in range(_TRIES)]
            for top, left in places:
                box = _around(digit, top, left)
                if box is not None and not any(_touch(box, other) for other in boxes):
                    _brighten(canvas, digit, top, left)
                    boxes.append(box)
                    labels.append(int(self.classes[number]))
                    break
        for _ in range(_PIECES):
            digit = self.digits[next(draws) % len(self.digits)]
            top, left = (next(draws) % (_DIGIT - _PIECE + 1) for _ in range(2))
            piece = digit[top : top + _PIECE, left : left + _PIECE]
            _brighten(canvas, piece, *(next(draws) % (_CANVAS - _PIECE + 1) for _ in range(2)))
        objects = Objects(
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.zeros(len(labels), dtype=np.bool_),
        )
        return Image.fromarray(canvas).convert("RGB"), objects

    def subset(self, indices: NDArray[np.int64]) -> DigitBoxes:
        """The canvases at `indices`, unchanged."""
        return DigitBoxes(self.part, self.digits, self.classes, self.numbers[indices])

    def fingerprint(self) -> str:
        """Hash of what the canvases are made from; none is drawn."""
        rules = (_rules(self.part), _CANVAS, _MOST, _PIECES, _PIECE, _SMALLEST, _LARGEST, _TRIES, _INK)
        digits = np.ascontiguousarray(self.digits).data
        return digest(" ".join(map(str, rules)).encode(), digits, self.classes.data, self.numbers.data)


def load(name: str, root: Path, download: bool) -> DataSet:
    """Reads MNIST below `root`, downloading it if `download` is set; nothing else is needed.

    Each canvas has one to four digits, enlarged or shrunk to squares of 20 to 44 pixels without smoothing, so that
    their boxes do not touch, and twelve pieces of 8x8 pixels cut from other digits. A box is as tight as the digit's
    bright pixels. Where a digit and a piece overlap, the brighter pixel wins.

    Raises:
        DataError: The files of MNIST are missing or damaged.
    """
    digits = mnist.load("mnist", root, download)
    return DataSet(
        name=name,
        class_names=digits.class_names,
        channels=3,
        image_size=(_CANVAS, _CANVAS),
        mean=(_MEAN,) * 3,
        std=(_STD,) * 3,
        flip=False,
        train=None if digits.train is None else _canvases(name, "train", digits.train),
        test=_canvases(name, "test", digits.test),
        task="detection",
        missing=digits.missing,
    )


def _canvases(name: str, part: str, split: Split) -> DigitBoxes:
    assert isinstance(split, ArraySplit), "MNIST is read into memory"
    if split.images.shape[1:] != (_DIGIT, _DIGIT) or len(split.images) == 0:
        size = "x".join(map(str, split.images.shape[1:]))
        raise DataError(
            f"{name}: the {part} part of MNIST has {len(split.images)} images of {size}, not {_DIGIT}x{_DIGIT}; fetch "
            "its files again"
        )
    return DigitBoxes(part, split.images, split.labels, np.arange(_IMAGES[part]))


def _rules(part: str) -> str:
    return f"mnist-boxes {SPLIT_SEED} {part}"


def _draws(part: str, number: int) -> Iterator[int]:
    """Numbers that are always the same: NumPy's generators may give others in another version, a hash never does."""
    count = 1 + _MOST * (2 + 2 * _TRIES) + 5 * _PIECES
    stream = hashlib.shake_128(f"{_rules(part)} {number}".encode()).digest(4 * count)
    return iter(np.frombuffer(stream, dtype="<u4").tolist())


def _around(digit: NDArray[np.uint8], top: int, left: int) -> tuple[int, int, int, int] | None:
    """The tight box of a digit that is drawn there; None for one without a bright pixel."""
    rows, columns = (np.flatnonzero((digit >= _INK).any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1


def _touch(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> bool:
    return all(first[axis] <= second[axis + 2] and second[axis] <= first[axis + 2] for axis in (0, 1))


def _brighten(canvas: NDArray[np.uint8], pixels: NDArray[np.uint8], top: int, left: int) -> None:
    height, width = pixels.shape
    region = canvas[top : top + height, left : left + width]
    np.maximum(region, pixels, out=region)
