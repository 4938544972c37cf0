"""Lists of the classes in masks: names in order, or a number or colour with each name."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from prunecli.data.splits import read_lines
from prunecli.errors import DataError

CLASSES_FILE = "classes.txt"
_VOID_NAME = "void"
_NUMBERED = re.compile(r"(\d{1,5})\s*:\s*(.+)")
_COLORED = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})\s*:\s*(.+)")
_OTHERWISE = re.compile(r"\d+[\s=,;].*|.*[:=,;]\s*\d+")
_LABELMAP = re.compile(r"([^:#]+):(\d{1,3}),(\d{1,3}),(\d{1,3})(?::.*)?")


@dataclass(frozen=True)
class DeclaredClasses:
    """Classes of masks.

    Attributes:
        names: Name by number or colour (red * 65536 + green * 256 + blue); equal names are one class.
        void: Numbers or colours of no class.
        colored: Whether they are colours.
        by_order: Whether only names were given, so that numbers are their order.
    """

    names: dict[int, str]
    void: tuple[int, ...] = ()
    colored: bool = False
    by_order: bool = False


def declared_in(folder: Path) -> Path | None:
    """The list in a folder: `classes.txt`, CVAT's `labelmap.txt`, or CamVid's `class_dict.csv`."""
    return next((folder / name for name in (CLASSES_FILE, *_READERS) if (folder / name).is_file()), None)


def read_classes(path: Path, *, reduce_zero_label: bool = False) -> DeclaredClasses:
    """Reads a list of classes.

    Lines are names, the first of which is the class 0; or `number: name`; or `red,green,blue: name`. The name void
    stands for pixels of no class.

    Args:
        path: The file.
        reduce_zero_label: Whether the first of names in order has the number 1.

    Raises:
        DataError: It is not such a list.
    """
    reader = _READERS.get(path.name)
    if reader is not None:
        return reader(path)
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    for pattern, colored in ((_COLORED, True), (_NUMBERED, False)):
        matches = [pattern.fullmatch(line) for line in lines]
        if any(matches):
            entries: dict[int, str] = {}
            for line, match in zip(lines, matches, strict=True):
                if match is None:
                    shape = "red,green,blue: name" if colored else "number: name"
                    raise DataError(f"{path}: {line!r:.60} is not `{shape}`, as other lines are; write all lines alike")
                *numbers, name = match.groups()
                _enter(entries, _value(numbers, path, line), name.strip(), path)
            return _declared(entries, colored, path)
    if lines and all(_OTHERWISE.fullmatch(line) for line in lines):
        raise DataError(
            f"{path}: {lines[0]!r:.60} has a number in another form than `number: name`; write it like that"
        )
    if len(set(lines)) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise DataError(f"{path}: names {twice!r:.60} twice; give each class a name of its own")
    if not 2 <= len(lines) <= 255:
        raise DataError(f"{path}: names {len(lines)} classes; write 2 to 255 names, one on each line")
    numbered = dict(enumerate(lines, start=int(reduce_zero_label)))
    void = tuple(number for number, name in numbered.items() if name.lower() == _VOID_NAME)
    return DeclaredClasses({n: name for n, name in numbered.items() if n not in void}, void, by_order=True)


def color_name(value: int) -> str:
    """A colour as it is written in a list."""
    return f"{value >> 16},{value >> 8 & 255},{value & 255}"


def _labelmap(path: Path) -> DeclaredClasses:
    """CVAT's list: `name:red,green,blue:parts:actions` on each line."""
    entries: dict[int, str] = {}
    for line in read_lines(path):
        if line.startswith("#"):
            continue
        match = _LABELMAP.fullmatch(line)
        if match is None:
            raise DataError(f"{path}: {line!r:.60} is not `name:red,green,blue::`; correct it")
        name, *numbers = match.groups()
        _enter(entries, _value(numbers, path, line), name.strip(), path)
    return _declared(entries, True, path)


def _class_dict(path: Path) -> DeclaredClasses:
    """CamVid's list: a table with the columns name, r, g and b."""
    entries: dict[int, str] = {}
    for row in csv.DictReader(read_lines(path)):
        plain = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items()}
        if not {"name", "r", "g", "b"} <= plain.keys():
            raise DataError(f"{path}: lacks one of the columns name, r, g and b; add them")
        _enter(entries, _value([plain["r"], plain["g"], plain["b"]], path, str(row)), plain["name"], path)
    return _declared(entries, True, path)


_READERS = {"labelmap.txt": _labelmap, "class_dict.csv": _class_dict}


def _value(numbers: list[str], path: Path, line: str) -> int:
    parts = [int(number) if number.isdigit() else -1 for number in numbers]
    if len(parts) == 1:
        return parts[0]
    if not all(0 <= part <= 255 for part in parts):
        raise DataError(f"{path}: {line!r:.60} is not a colour; write three numbers from 0 to 255")
    return parts[0] << 16 | parts[1] << 8 | parts[2]


def _enter(entries: dict[int, str], value: int, name: str, path: Path) -> None:
    if value in entries:
        raise DataError(f"{path}: {name!r:.60} and {entries[value]!r:.60} have the same value; correct one of them")
    entries[value] = name


def _declared(entries: dict[int, str], colored: bool, path: Path) -> DeclaredClasses:
    names = {value: name for value, name in entries.items() if name.lower() != _VOID_NAME}
    if not 2 <= len(set(names.values())) <= 255:
        raise DataError(f"{path}: names {len(set(names.values()))} classes; write 2 to 255")
    return DeclaredClasses(names, tuple(value for value in entries if value not in names), colored)
