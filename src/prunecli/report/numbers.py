"""Formatting numbers for people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count(value: float | None) -> str:
    """Formats a count with a unit prefix: 1,234,567 as 1.23M."""
    if value is None:
        return "-"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def number_of(things: int, noun: str, nouns: str = "") -> str:
    """How many there are of something: 1 cell, 2 cells.

    Args:
        things: The number.
        noun: What one is called.
        nouns: What several are called; without it, the same with an s.
    """
    return f"{things:,} {noun if things == 1 else nouns or f'{noun}s'}"


def macs(total: float | None, uncounted: Sequence[str]) -> str:
    """Formats MACs, marked as a lower bound if some operators could not be counted."""
    return count(total) if total is None or not uncounted else f">= {count(total)}"


def size(value: float | None) -> str:
    """Formats bytes in binary units."""
    if value is None:
        return "-"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f} B"


def fixed(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Formats a number with a fixed number of decimals; None as a dash."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def interval(low: float, high: float, digits: int = 2) -> str:
    """Formats an interval, rounded outward so that the printed interval contains it."""
    scale = 10.0**digits
    low, high = math.floor(low * scale) / scale, math.ceil(high * scale) / scale
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def joules(nanojoules: float | None) -> str:
    """Formats an energy in a suitable unit."""
    if nanojoules is None:
        return "-"
    for unit, factor in (("J", 1e9), ("mJ", 1e6), ("uJ", 1e3)):
        if nanojoules >= factor:
            return f"{nanojoules / factor:.3f} {unit}"
    return f"{nanojoules:.3f} nJ"


def share(value: float | None, digits: int = 2) -> str:
    """Formats a fraction as a percentage."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float) -> str:
    """Formats a time: 2.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
