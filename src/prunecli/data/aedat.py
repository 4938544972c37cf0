"""AEDAT 2.0 (jAER, DVS128) and 3.1 (cAER), after iniVation's description of the formats.

https://docs.inivation.com/software/software-advanced-usage/file-formats/
"""

from __future__ import annotations

import struct
from typing import IO

import numpy as np
from numpy.typing import NDArray

from prunecli.data.events import Events, unwrapped

MAGIC = b"#!AER-DAT"
_VERSION_2, _VERSION_3 = "2.0", "3.1"
_DVS128 = 128
_LONGEST_LINE, _MOST_LINES = 1 << 16, 10_000
_HEADER_END = b"#!END-HEADER"
_PACKET = struct.Struct("<hh6i")
_POLARITY = 1
_EVENT = np.dtype([("data", "<u4"), ("t", "<i4")])
_EXTERNAL = 1 << 15
_WRAP_2 = 1 << 32

Interval = tuple[int, int]
"""Start and end in microseconds; the end is exclusive."""


def read_aedat(stream: IO[bytes], size: int, version: str | None, interval: Interval | None, most: int) -> Events:
    """Reads the polarity events of a file.

    Args:
        stream: The file, at its beginning.
        size: Size of the file in bytes.
        version: "2.0" or "3.1" to accept only that version.
        interval: Events outside it are left out.
        most: Maximal size of the events in bytes.

    Raises:
        ValueError: It is not an AEDAT file of that version, or is damaged; the message says what is wrong.
    """
    first = stream.readline(_LONGEST_LINE)
    if not first.startswith(MAGIC):
        raise ValueError("it does not begin as an AEDAT file does")
    actual = first[len(MAGIC) :].strip().decode("ascii", errors="replace")[:8]
    if actual not in (_VERSION_2, _VERSION_3):
        raise ValueError(f"it is AEDAT {actual}; {_VERSION_2} and {_VERSION_3} are read")
    if version not in (None, actual):
        raise ValueError(f"it is AEDAT {actual}, expected {version}")
    if actual == _VERSION_3:
        return _version_3(stream, size, interval, most)
    events = _version_2(stream, size, most)
    return events.between(*interval) if interval is not None else events


def _version_2(stream: IO[bytes], size: int, most: int) -> Events:
    """Pairs of address and time, both 32 bits, high byte first.

    An address of the DVS128 holds the row in bits 8-14, counted from the bottom, the column in bits 1-7, counted from
    the right, and 1 in bit 0 if the pixel got darker, as jAER's class DVS128 reads it. Bit 15 marks external events.
    """
    _require_dvs128(_skip_lines(stream))
    left = size - stream.tell()
    if left % 8:
        raise ValueError(f"its last event is cut: {left:,} bytes of events are not a multiple of 8")
    _require_room(left, most)
    words = np.frombuffer(stream.read(left), dtype=">u4").astype(np.int64).reshape(-1, 2)
    address, stamps = words[:, 0], words[:, 1]
    if 2 * np.count_nonzero(address >> 16) > len(address):
        raise ValueError("its addresses are not those of a DVS128")
    pixels = (address & _EXTERNAL) == 0
    address = address[pixels]
    return Events(
        x=_DVS128 - 1 - (address >> 1 & 0x7F),
        y=_DVS128 - 1 - (address >> 8 & 0x7F),
        t=unwrapped(stamps[pixels], _WRAP_2),
        p=1 - (address & 1),
    )


def _version_3(stream: IO[bytes], size: int, interval: Interval | None, most: int) -> Events:
    """Packets, each with events of one type; all numbers have their low byte first."""
    lines = _skip_lines(stream)
    if not lines or not lines[-1].startswith(_HEADER_END):
        raise ValueError("its header has no end")
    parts: list[NDArray[np.int64]] = []
    held = 0
    while head := stream.read(_PACKET.size):
        position = stream.tell() - len(head)
        if len(head) < _PACKET.size:
            raise ValueError(f"its last packet is cut, at byte {position:,}")
        kind, _, each, _, overflow, capacity, number, _ = _PACKET.unpack(head)
        if each <= 0 or overflow < 0 or not 0 <= number <= capacity or (kind == _POLARITY and each != _EVENT.itemsize):
            raise ValueError(f"the packet at byte {position:,} is damaged")
        if each * capacity > size - stream.tell():
            raise ValueError(
                f"the packet at byte {position:,} claims {each * capacity:,} bytes and the file has "
                f"{size - stream.tell():,} more"
            )
        if kind != _POLARITY:
            stream.seek(each * capacity, 1)
            continue
        _require_room(each * capacity, most)
        body = stream.read(each * capacity)
        if number == 0:
            continue
        events = np.frombuffer(body, dtype=_EVENT, count=number)
        t = events["t"].astype(np.int64) + (overflow << 31)
        if interval is not None and t[0] >= interval[1]:
            break
        if interval is not None and t[-1] < interval[0]:
            continue
        data = events["data"].astype(np.int64)
        selected = (data & 1) == 1  # a filter marked the others as invalid
        if interval is not None:
            selected &= (t >= interval[0]) & (t < interval[1])
        parts.append(np.stack([data[selected], t[selected]]))
        held += parts[-1].nbytes
        _require_room(held // 2, most)
    data, t = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), np.int64)
    return Events(x=data >> 17 & 0x7FFF, y=data >> 2 & 0x7FFF, t=t, p=data >> 1 & 1)


def _skip_lines(stream: IO[bytes]) -> list[bytes]:
    """Reads the header's lines, up to the first byte after it.

    Raises:
        ValueError: The header has no end.
    """
    lines: list[bytes] = []
    while len(lines) < _MOST_LINES:
        position = stream.tell()
        line = stream.readline(_LONGEST_LINE)
        if not line.startswith(b"#"):
            stream.seek(position)
            return lines
        lines.append(line)
        if line.startswith(_HEADER_END):
            return lines
    raise ValueError("its header has no end")


def _require_dvs128(lines: list[bytes]) -> None:
    for line in lines:
        name = line.partition(b"AEChip:")[2].strip().decode("ascii", errors="replace")
        if name and "DVS128" not in name.upper():
            raise ValueError(f"it comes from a {name.rpartition('.')[2][:40]}; of AEDAT 2.0 only a DVS128's are read")


def _require_room(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it has over {most / 2**20:g} MiB of events; cut it into shorter recordings")
