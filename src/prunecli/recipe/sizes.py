"""Image sizes as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from prunecli.errors import RecipeError

_MOST_NUMBERS = 1 << 28
_KINDS = ("float32", "int64")
_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")


def parse_size(text: str | int) -> tuple[int, int]:
    """Height and width from "256" or "360x480".

    Raises:
        RecipeError: It is neither.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise RecipeError(f"image size {str(text)!r}: write height and width as 360x480, or one number for both")
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True)
class ExampleShape:
    """What a network of the user's own takes.

    Attributes:
        lengths: Of all dimensions, the batch first.
        integers: Whether it takes whole numbers, such as tokens.
    """

    lengths: tuple[int, ...]
    integers: bool = False


def parse_shape(text: str) -> ExampleShape:
    """A shape such as 1x3x64x64, or 1x128:int64 for whole numbers.

    Raises:
        RecipeError: It is none.
    """
    shape, colon, kind = text.lower().partition(":")
    lengths = [int(part) if part.isascii() and part.isdigit() else 0 for part in shape.split("x")]
    if not 0 < math.prod(lengths) <= _MOST_NUMBERS or (colon and kind not in _KINDS):
        raise RecipeError(
            f"--example-shape {text}: write it as 1x3x64x64, with the batch first, or as 1x128:int64 for whole numbers"
        )
    return ExampleShape(tuple(lengths), kind.startswith("int"))
