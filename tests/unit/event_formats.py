"""Writes events as the descriptions of the formats say, event by event and apart from what reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

Event = tuple[int, int, int, int]
"""Column, row, microseconds, polarity (1 brighter)."""

AEDAT2_HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"
AEDAT3_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-08-12 15:20:32 (TZ+0200)\r\n#!END-HEADER\r\n"
)


def atis(events: Sequence[Event]) -> bytes:
    """40 bits for each event, highest first: 8 column, 8 row, 1 polarity, 23 time (Orchard et al., 2015)."""
    return b"".join(((x << 32) | (y << 24) | (p << 23) | (t % 2**23)).to_bytes(5, "big") for x, y, t, p in events)


def aedat2(events: Sequence[Event], *, header: bytes = AEDAT2_HEADER) -> bytes:
    """Address and time, 32 bits each.

    Of the address bit 0 is 1 for darker, 1-7 count columns from the right, 8-14 rows from below (jAER's DVS128).
    """
    records = [struct.pack(">II", (127 - y) << 8 | (127 - x) << 1 | (1 - p), t % 2**32) for x, y, t, p in events]
    return header + b"".join(records)


def aedat3_packet(events: Sequence[Event], *, overflow: int = 0, valid: int = 1, kind: int = 1) -> bytes:
    """Type, source, size, offset of the time, overflow, capacity, number, valid ones; then the events.

    Of their first word bit 0 says valid, 1 is the polarity, 2-16 the row, 17-31 the column; the second is the time.
    """
    head = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, len(events), len(events), valid * len(events))
    return head + b"".join(struct.pack("<Ii", x << 17 | y << 2 | p << 1 | valid, t) for x, y, t, p in events)


def aedat3(*packets: bytes) -> bytes:
    """Header lines and packets."""
    return AEDAT3_HEADER + b"".join(packets)
