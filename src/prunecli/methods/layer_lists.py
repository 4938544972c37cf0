"""Choosing layers by index, range or name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from prunecli.errors import MethodError

_RANGE = re.compile(r"(\d+)[-:](\d+)")


def chosen_layers(names: Sequence[str], wanted: Sequence[str], option: str) -> list[str]:
    """The layers that are asked for, in the order of `names`; all if nothing is asked for.

    Args:
        names: All layers in order; indices count them from 0.
        wanted: Indices, ranges such as 0-4 (both ends included), names or shell patterns; entries may hold several of
            them with commas, and brackets around lists are ignored.
        option: The option, for messages.

    Raises:
        MethodError: An entry names no layer.
    """
    entries = [part for text in wanted for part in text.strip("[]() ").replace(" ", ",").split(",") if part]
    if not entries:
        return list(names)
    picked: set[int] = set()
    for entry in entries:
        span = _RANGE.fullmatch(entry)
        first, last = (int(span[1]), int(span[2])) if span else (int(entry), int(entry)) if entry.isdigit() else (0, -1)
        indices = (
            range(first, last + 1)
            if span or entry.isdigit()
            else [index for index, name in enumerate(names) if fnmatchcase(name, entry)]
        )
        if not indices or any(index >= len(names) for index in indices):
            raise MethodError(f"{option}: there is no {entry}; {_existing(names)}")
        picked.update(indices)
    return [name for index, name in enumerate(names) if index in picked]


_SHOWN = 12


def _existing(names: Sequence[str]) -> str:
    if not names:
        return "the network has none to choose from"
    listed = ", ".join(f"{index} {name}" for index, name in enumerate(names[:_SHOWN]))
    return f"choose from {listed}{', ...' if len(names) > _SHOWN else ''}"
