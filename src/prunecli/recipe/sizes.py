"""Image sizes as people write them."""

from __future__ import annotations

import math
import re

from prunecli.errors import RecipeError

_MOST_NUMBERS = 1 << 28
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


def parse_shape(text: str) -> tuple[int, ...]:
    """A shape such as 1x3x64x64.

    Raises:
        RecipeError: It is none.
    """
    lengths = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.lower().split("x")]
    if not 0 < math.prod(lengths) <= _MOST_NUMBERS:
        raise RecipeError(f"--example-shape {text}: write it as 1x3x64x64, with the batch first")
    return tuple(lengths)
