"""Reading image files: unreadable ones are named, and up to a number of them may be left out."""

from __future__ import annotations

import errno
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from prunecli.errors import DataError, ResourceError, first_line

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
"""Formats that are opened. Pillow knows more, and starts another program for one of them."""
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImage(DataError):
    """A file that is not a readable image.

    Attributes:
        path: The file.
        reason: Why, in a few words.
        kind: What it should have been, such as "image" or "recording".
    """

    def __init__(self, path: Path, reason: str, kind: str = "image") -> None:
        super().__init__(
            f"{path}: not a readable {kind} ({reason}); replace or remove it, or leave it out: --skip-bad 1"
        )
        self.path, self.reason, self.kind = path, reason, kind


def read_image(path: Path, mode: str | None = None) -> Image.Image:
    """Reads and decodes an image file.

    Args:
        path: The file.
        mode: One of Pillow's modes to convert it to, such as "RGB".

    Raises:
        UnreadableImage: It is not a regular file, not an image, damaged, or has more than Pillow's `MAX_IMAGE_PIXELS`
            pixels according to its header.
        ResourceError: The process may not open any more files.
    """
    try:
        irregular = irregularity(path)
        if irregular is not None:
            raise UnreadableImage(path, irregular)
        return decode(path, mode)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # decoders raise many types
        if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
            raise ResourceError(f"{path}: cannot be opened ({error.strerror}); load with fewer --workers") from error
        raise UnreadableImage(path, _reason(path, error)) from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width as the header of an image file says; the image is not decoded.

    Raises:
        UnreadableImage: It is not an image file.
    """
    try:
        irregular = irregularity(path)
        if irregular is not None:
            raise UnreadableImage(path, irregular)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                return opened.height, opened.width
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # decoders raise many types
        raise UnreadableImage(path, _reason(path, error)) from error


def decode(source: Path | BinaryIO, mode: str | None = None) -> Image.Image:
    """Decodes an image of one of `_FORMATS`; decoders raise many types, see `decoding_error`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=_FORMATS) as opened:
            opened.load()
            return opened if mode is None else converted(opened, mode)


def converted(image: Image.Image, mode: str) -> Image.Image:
    """An image in another of Pillow's modes, in which a pixel has eight bits.

    Pillow cuts wider pixels off at 255, so that nearly everything of an image with 16 bits would be white.

    Raises:
        ValueError: The pixels have 32 bits, and so no known range.
    """
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and no known range; save it with 8 or 16")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def irregularity(path: Path) -> str | None:
    """What a path is if it is not a plain file, else None; opening a pipe would wait forever for a writer.

    Raises:
        OSError: It does not exist.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "not a regular file"


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link to a file that does not exist" if path.is_symlink() else "it does not exist"
    if isinstance(error, UnidentifiedImageError) and path.stat().st_size == 0:
        return "the file is empty"
    return decoding_error(error)


def decoding_error(error: Exception) -> str:
    """Why `decode` raised `error`, in a few words."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is not {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def image_bytes(path: Path) -> int:
    """Size of a file in bytes; -1 if there is none, as behind a dangling link."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


class BadImages:
    """Unreadable images of one run, over all splits and loaders; each counts once.

    Args:
        allowed: How many may be left out; one more is an error.
    """

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def left_out(self) -> dict[str, str]:
        """Why each file could not be read, in the order in which they were met."""
        return dict(self._reasons)

    def restore(self, left_out: Mapping[str, str]) -> None:
        """Counts what an earlier part of the run left out."""
        self._reasons = {**left_out, **self._reasons}

    def add(self, path: str, reason: str, kind: str = "image") -> None:
        """Counts an unreadable file.

        Args:
            path: The file.
            reason: Why it cannot be read, in a few words.
            kind: What it should have been.

        Raises:
            DataError: There are more than are allowed.
        """
        if path in self._reasons:
            return
        if len(self._reasons) >= self.allowed:
            count = len(self._reasons) + 1
            if self.allowed == 0:
                raise UnreadableImage(Path(path), reason, kind)
            raise DataError(
                f"{path}: not a readable {kind} ({reason}), the {_ordinal(count)} of them where --skip-bad allows "
                f"{self.allowed}; replace or remove it, or allow more"
            )
        self._reasons[path] = reason


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
