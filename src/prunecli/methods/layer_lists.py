"""Choosing layers by index, range or name."""

from __future__ import annotations

from collections.abc import Sequence
from re import fullmatch

from prunecli.errors import MethodError, nearest
from prunecli.patterns import matches, split_patterns, with_modules


def chosen_layers(
    names: Sequence[str], words: Sequence[str], option: str, what: str, others: Sequence[str] = ()
) -> list[str]:
    """The layers that are asked for: by index, range (0-4 with both ends, 0:5 without the last) or shell pattern.

    Args:
        names: What can be meant by a number, in the network's order.
        words: As given, also several with commas, in brackets or not.
        option: The option, for messages.
        what: What `names` are, in the plural, for messages.
        others: Further names that only patterns can mean.

    Returns:
        Names in the order of `names` and `others`; all of `names` if nothing is asked for.

    Raises:
        MethodError: One of them does not exist; the message says which do.
    """
    entries = _split(words)
    if not entries:
        return list(names)
    chosen: set[str] = set()
    for entry in entries:
        bounds = fullmatch(r"(\d+)(?:([-:])(\d+))?", entry)
        if bounds is None:
            meant = {name for name in (*names, *others) if matches(name, entry)}
        else:
            low, kind, high = int(bounds[1]), bounds[2], int(bounds[3] or bounds[1])
            last = high - 1 if kind == ":" else high
            meant = set(names[low : last + 1]) if low <= last < len(names) else set()
        if not meant:
            there = f"{len(names)} {what}, 0 ({names[0]}) to {len(names) - 1} ({names[-1]})" if names else f"no {what}"
            close = nearest(entry, with_modules((*names, *others)), count=1) if bounds is None else []
            hint = f"did you mean {close[0]!r}? The network has {there}" if close else f"the network has {there}"
            raise MethodError(f"{option} {entry}: there is no such layer; {hint}")
        chosen |= meant
    return [name for name in dict.fromkeys((*names, *others)) if name in chosen]


def _split(words: Sequence[str]) -> list[str]:
    parts: list[str] = []
    for word in words:
        bare = word.strip()
        if fullmatch(r"\[[\d\s,:-]*\]", bare):  # as older tools write lists
            bare = bare[1:-1]
        parts += split_patterns(bare)
    return parts
