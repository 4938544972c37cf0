"""The directory of a zip file that torch wrote, read with bounds on everything the file claims.

torch's own reader trusts the directory, so a file is only passed on to it if it can be read in just one way: entries
are stored uncompressed, none overlaps another, and the directory is the end of the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

_MAX_ENTRIES = 100_000
_END, _END64, _LOCATOR, _CENTRAL, _LOCAL = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2", b"PK\3\4"
_END_SIZE, _END64_SIZE, _LOCATOR_SIZE, _CENTRAL_SIZE, _LOCAL_SIZE = 22, 56, 20, 46, 30
_MAX_DIRECTORY = 64 << 20
_MAX_NAME = 1024
_FULL = 0xFFFFFFFF
_ENCRYPTED = 0x1


class Damaged(Exception):
    """A file cannot be read safely; the text says why and follows the file's name in a message.

    Args:
        cause: What is wrong.
        remedy: What to do about it, if not fetching the file again.
    """

    def __init__(self, cause: str, remedy: str = "fetch or save the file again") -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


@dataclass(frozen=True)
class Entry:
    """One file in the archive.

    Attributes:
        name: Its name in the directory, for instance "archive/data/0".
        offset: Position of its first byte in the whole file.
        size: Number of bytes that it takes in the file.
        plain: Whether it is neither compressed nor encrypted.
    """

    name: str
    offset: int
    size: int
    plain: bool = True


def read_directory(file: BinaryIO, size: int) -> dict[str, Entry]:
    """Reads and checks the directory of a zip file without unpacking anything.

    Args:
        file: The open file.
        size: Its length in bytes.

    Returns:
        The entries by name.

    Raises:
        Damaged: The archive is cut short, or not laid out as torch writes it.
    """
    start, length, count = _find_directory(file, size)
    data = _read(file, start, length)
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    position = 0
    for _ in range(count):
        if data[position : position + 4] != _CENTRAL or position + _CENTRAL_SIZE > len(data):
            raise Damaged("its zip directory is damaged")
        entry, position = _central_entry(data, position)
        if entry.name.lower() in seen:  # torch ignores case when it looks up names
            raise Damaged(f"it holds {entry.name!r} twice")
        seen.add(entry.name.lower())
        entries[entry.name] = entry
    if position != len(data):
        raise Damaged("its zip directory is damaged")
    return _located(file, entries, start)


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Offset, length and number of entries of the central directory."""
    if size < _END_SIZE:
        raise Damaged("it is cut short: the directory at the end is missing")
    end_at = size - _END_SIZE
    end = _read(file, end_at, _END_SIZE)
    if end[:4] != _END:
        raise Damaged("it is cut short, or something was added at its end")
    disk, directory_disk, disk_count, count, length, start, comment = struct.unpack("<4H2LH", end[4:])
    locator_at = end_at - _LOCATOR_SIZE
    if locator_at >= 0 and (locator := _read(file, locator_at, _LOCATOR_SIZE))[:4] == _LOCATOR:
        _, end64_at, _ = struct.unpack("<LQL", locator[4:])
        if end64_at != locator_at - _END64_SIZE:
            raise Damaged("its zip directory is damaged")
        end64 = _read(file, end64_at, _END64_SIZE)
        if end64[:4] != _END64:
            raise Damaged("its zip directory is damaged")
        disk, directory_disk, disk_count, count, length, start = struct.unpack("<2L4Q", end64[16:])
        end_at = end64_at
    if comment or disk or directory_disk or disk_count != count or start + length != end_at:
        raise Damaged("its zip directory is damaged")
    if count > _MAX_ENTRIES or length > _MAX_DIRECTORY:
        raise Damaged(f"it claims {count:,} entries; {_MAX_ENTRIES:,} is the limit")
    return start, length, count


def _central_entry(data: bytes, position: int) -> tuple[Entry, int]:
    """An entry, with the offset of its local header, and the position of the next record in the directory."""
    flags, method = struct.unpack_from("<2H", data, position + 8)
    packed, size, name_length, extra_length, comment_length = struct.unpack_from("<2L3H", data, position + 20)
    (offset,) = struct.unpack_from("<L", data, position + 42)
    name_at = position + _CENTRAL_SIZE
    raw = data[name_at : name_at + name_length]
    extra = data[name_at + name_length : name_at + name_length + extra_length]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged("a name in its zip directory is damaged") from error
    if not name or len(name) > _MAX_NAME or "\0" in name:
        raise Damaged("a name in its zip directory is damaged")
    if _FULL in (packed, size, offset):
        size, packed, offset = _wide_fields(extra, size, packed, offset)
    plain = not method and packed == size and not flags & _ENCRYPTED
    return Entry(name, offset, packed, plain), name_at + name_length + extra_length + comment_length


def _wide_fields(extra: bytes, *fields: int) -> tuple[int, ...]:
    """Replaces fields too small for their values by those of the zip64 record, which lists them in order."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if kind == 1:
            wide = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            try:
                return tuple(next(wide) if field == _FULL else field for field in fields)
            except RuntimeError as error:  # a StopIteration inside the generator
                raise Damaged("its zip directory is damaged") from error
        position += 4 + length
    raise Damaged("its zip directory is damaged")


def _located(file: BinaryIO, entries: dict[str, Entry], limit: int) -> dict[str, Entry]:
    """Reads each entry's local header and checks that no two entries overlap."""
    located: dict[str, Entry] = {}
    free = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.offset):
        if entry.offset < free or entry.offset + _LOCAL_SIZE > limit:
            raise Damaged(f"its entry {entry.name!r} overlaps another one or lies outside the file")
        header = _read(file, entry.offset, _LOCAL_SIZE)
        name_length, extra_length = struct.unpack_from("<2H", header, 26)
        data_at = entry.offset + _LOCAL_SIZE + name_length + extra_length
        if header[:4] != _LOCAL or _read(file, entry.offset + _LOCAL_SIZE, name_length) != entry.name.encode():
            raise Damaged(f"the header of its entry {entry.name!r} is damaged")
        free = data_at + entry.size
        if free > limit:
            raise Damaged(f"its entry {entry.name!r} claims {entry.size:,} bytes, more than the file has")
        located[entry.name] = replace(entry, offset=data_at)
    return located


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) != count:
        raise Damaged("it is cut short")
    return data
