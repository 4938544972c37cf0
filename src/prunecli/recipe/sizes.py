"""Image sizes as people write them."""

from __future__ import annotations

import re

from prunecli.errors import RecipeError

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
