"""`cluttered-mnist`: MNIST digits somewhere on a larger canvas, among pieces of other digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunecli.data import mnist
from prunecli.data.splits import SPLIT_SEED, ArraySplit, ImageData, Split, digest
from prunecli.errors import DataError

_CANVAS, _DIGIT, _PIECE = 48, 28, 8
"""Heights, which are also the widths, in pixels."""
_PIECES = 6
_MEAN, _STD = 0.0772, 0.2463
"""Of all pixels in 0..1 of the 60,000 training canvases."""


@dataclass(frozen=True, eq=False)
class ClutterSplit:
    """Canvases that are drawn when they are asked for.

    Attributes:
        part: "train" or "test".
        digits: All digits of that part, uint8, shape (digits, 28, 28); the pieces are cut from these.
        places: Which of them are shown, shape (images,).
        labels: Class indices, shape (images,).
    """

    part: str
    digits: NDArray[np.uint8]
    places: NDArray[np.int64]
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """The canvas at `index`; it depends on the part and the place of its digit in it alone."""
        place = int(self.places[index])
        draws = _draws(self.part, place)
        canvas = np.zeros((_CANVAS, _CANVAS), dtype=np.uint8)
        _draw(canvas, self.digits[place], draws[:2])
        for piece in draws[2:].reshape(_PIECES, 5):
            other = int(piece[0] % (len(self.digits) - 1))
            digit = self.digits[other + (other >= place)]
            top, left = (int(draw % (_DIGIT - _PIECE + 1)) for draw in piece[1:3])
            _draw(canvas, digit[top : top + _PIECE, left : left + _PIECE], piece[3:])
        return Image.fromarray(canvas)

    def subset(self, indices: NDArray[np.int64]) -> ClutterSplit:
        """The canvases at `indices`, which look as they do here."""
        return ClutterSplit(self.part, self.digits, self.places[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """Hash of what the canvases are made of; none is drawn."""
        rules = f"{_rules(self.part)} {_CANVAS} {_DIGIT} {_PIECE} {_PIECES}".encode()
        return digest(rules, np.ascontiguousarray(self.digits).data, self.places.data, self.labels.data)


def load(name: str, root: Path, download: bool) -> ImageData:
    """Reads MNIST below `root`, and fetches it if need be; the canvases need nothing else.

    Each digit lies at a random place of a black canvas of 48x48 pixels, with six pieces of 8x8 pixels cut from other
    digits of its part at other places. Where they overlap the brighter pixel is seen.

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
        train=_clutter(name, "train", digits.training_split()),
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


def _draws(part: str, place: int) -> NDArray[np.uint32]:
    """Where the digit goes (2), and for each piece which digit, where it is cut and where it goes (1, 2, 2)."""
    # NumPy's generators may draw other numbers in another version; a hash never does.
    count = 2 + 5 * _PIECES
    return np.frombuffer(hashlib.shake_128(f"{_rules(part)} {place}".encode()).digest(4 * count), dtype="<u4")


def _draw(canvas: NDArray[np.uint8], what: NDArray[np.uint8], where: NDArray[np.uint32]) -> None:
    height, width = what.shape
    top, left = int(where[0] % (_CANVAS - height + 1)), int(where[1] % (_CANVAS - width + 1))
    region = canvas[top : top + height, left : left + width]
    np.maximum(region, what, out=region)
