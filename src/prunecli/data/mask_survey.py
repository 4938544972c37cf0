"""What mask files hold: their numbers or colours, how often, and whether a lossy format has changed them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.data.images import read_image
from prunecli.errors import DataError

_SURVEYED = 1000
"""More masks than this are not read before they are needed; an even choice of so many is."""
_ALPHA = 255
_COUNTABLE = 1 << 16


@dataclass
class Survey:
    """The values of masks: class numbers, or colours as red * 65536 + green * 256 + blue.

    Attributes:
        total: Number of masks.
        surveyed: How many of them were read.
        pixels: Number of pixels by value.
        first: The first mask with each value.
        exact: The first mask with each value that is in no lossy format.
        contents: The first mask with each set of values.
        lossy: The first mask in a lossy format.
        coloured: The first mask that is not grey; its values were not counted.
    """

    total: int
    surveyed: int = 0
    pixels: dict[int, int] = field(default_factory=dict)
    first: dict[int, Path] = field(default_factory=dict)
    exact: dict[int, Path] = field(default_factory=dict)
    contents: dict[frozenset[int], Path] = field(default_factory=dict)
    lossy: Path | None = None
    coloured: Path | None = None

    @property
    def values(self) -> list[int]:
        """All values, ascending."""
        return sorted(self.pixels)

    def add(self, path: Path, values: NDArray[Any], counts: NDArray[Any], lossy: bool) -> None:
        """Counts one mask."""
        self.surveyed += 1
        plain = values.tolist()
        for value, count in zip(plain, counts.tolist(), strict=True):
            self.pixels[value] = self.pixels.get(value, 0) + count
            self.first.setdefault(value, path)
            if not lossy:
                self.exact.setdefault(value, path)
        self.contents.setdefault(frozenset(plain), path)
        if lossy:
            self.lossy = self.lossy or path


def survey(masks: Sequence[Path], *, colored: bool) -> Survey:
    """Counts the values of up to 1000 masks, evenly chosen. Masks that cannot be read are left to whoever loads them.

    Args:
        masks: The files.
        colored: Whether values are colours.
    """
    found = Survey(len(masks))
    chosen = np.unique(np.linspace(0, len(masks) - 1, min(len(masks), _SURVEYED)).round().astype(int))
    files = [masks[index] for index in chosen]
    with ThreadPoolExecutor(4) as pool:
        for path, counted in zip(files, pool.map(lambda path: _counted(path, colored), files), strict=True):
            if isinstance(counted, _Coloured):
                found.coloured = found.coloured or path
            elif counted is not None:
                found.add(path, *counted)
    return found


def mask_values(path: Path, *, colored: bool = False) -> NDArray[Any]:
    """The values in a mask file, shape (height, width).

    Args:
        path: The file.
        colored: Colours of the pixels; otherwise numbers, of palette images their indices.

    Raises:
        DataError: Numbers are wanted and it has colours, or it is partly transparent.
    """
    opened = read_image(path)
    if opened.mode in ("RGBA", "LA"):
        alpha = np.asarray(opened.getchannel("A"))
        if (alpha != _ALPHA).any():
            raise DataError(f"{path}: is partly transparent; save the mask without transparency")
    if colored:
        channels = np.asarray(opened.convert("RGB")).astype(np.int32)
        return channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    if opened.mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(opened.convert("RGB"))
        if (channels != channels[..., :1]).any():
            raise _Coloured(
                f"{path}: has colours, and masks here hold class numbers; say in classes.txt which colour is which "
                "class, a line `red,green,blue: name` for each"
            )
        return channels[..., 0]
    values = np.asarray(opened)
    if opened.mode == "1":
        return values.astype(np.uint8)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{path}: is a {opened.mode} image; a mask has one channel with a class number for each pixel")
    if values.size and int(values.min()) < 0:
        raise DataError(f"{path}: holds the negative number {values.min()}; write 255, or another number that is void")
    return values


class _Coloured(DataError):
    """Colours where numbers are wanted."""


def is_lossy(path: Path) -> bool:
    """Whether a picture is in a format that changes values."""
    with path.open("rb") as file:
        start = file.read(16)
    return start.startswith(b"\xff\xd8") or (start[:4] == b"RIFF" and start[12:] == b"VP8 ")  # JPEG, WebP


def _counted(path: Path, colored: bool) -> tuple[NDArray[Any], NDArray[Any], bool] | _Coloured | None:
    try:
        held = mask_values(path, colored=colored)
        if colored or int(held.max(initial=0)) >= _COUNTABLE:
            values, counts = np.unique(held, return_counts=True)
        else:  # without sorting
            pixels = np.bincount(held.ravel())
            values, counts = pixels.nonzero()[0], pixels[pixels > 0]
        return values, counts, is_lossy(path)
    except _Coloured as error:
        return error
    except DataError:  # loading the image decides whether it may be left out
        return None
