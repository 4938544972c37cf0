"""Which image has which boxes: the layout of a folder, found by what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prunecli.data.boxes import FileBoxSplit
from prunecli.data.splits import SPLIT_NAMES
from prunecli.errors import DataError

MAX_BYTES = 1 << 20
"""Of a file about one image, or of a list of classes."""


@dataclass(frozen=True)
class BoxLayout:
    """What is on disk.

    Attributes:
        kind: The layout, for a note.
        class_names: Names of the classes, in the order of their numbers.
        parts: Images of each part, with their boxes; "all" if nothing divides them.
        notes: What the user should know, a line each.
        categories: Number of each class in COCO's files.
    """

    kind: str
    class_names: tuple[str, ...]
    parts: Mapping[str, FileBoxSplit]
    notes: tuple[str, ...] = ()
    categories: tuple[int, ...] = ()


def part_named(words: Iterable[str]) -> str | None:
    """The part that one of `words`, such as the name of a file, speaks of."""
    said = {piece for word in words for piece in re.split(r"[^a-z]+", word.lower())}
    return next((part for part, spellings in SPLIT_NAMES.items() if said & set(spellings)), None)


def inside(folder: Path, name: object, where: str) -> Path:
    """A file that an annotation names, below `folder`.

    Raises:
        DataError: It is no name, or leads outside.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where}: the file name is {name!r:.60}; give the name of an image")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{where}: {name!r:.120} leads out of the data set's folder; give a path inside")
    return folder / path


def read_small(path: Path) -> str:
    """The text of a file about one image.

    Raises:
        DataError: It is no text, or larger than any such file is.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: has over {MAX_BYTES:,} bytes, so it is not about one image; remove it")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error}); write it again") from error


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    endings = (*IMG_EXTENSIONS, ".gif")
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in endings and path.name[0] != "."]


def check_names(names: Iterable[object], where: Path) -> tuple[str, ...]:
    """Names of classes.

    Raises:
        DataError: There is none, one is no text, or two are the same.
    """
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: {name!r:.60} is not the name of a class; write a text")
        if name.strip() in checked:
            raise DataError(f"{where}: names the class {name.strip()!r:.60} twice; give each a name of its own")
        checked.append(name.strip())
    if not checked:
        raise DataError(f"{where}: names no class; write one at least")
    return tuple(checked)
