"""Bounds of numbers in annotations, for pydantic; annotated_types has the same, and importing it takes a while.

Help and completion read annotations for what they say of options, and check nothing. So a bound here is a group of one
(`annotated_types.GroupedMetadata`), which whoever checks values unfolds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal


class _Bound:
    __is_annotated_types_grouped_metadata__: Literal[True] = True

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __iter__(self) -> Iterator[Any]:
        import annotated_types

        yield getattr(annotated_types, type(self).__name__)(self.bound)


class Ge(_Bound):
    """At least."""


class Gt(_Bound):
    """More than."""


class Le(_Bound):
    """At most."""


class Lt(_Bound):
    """Less than."""


def is_share(annotations: Iterable[Any]) -> bool:
    """Whether the bounds among `annotations` are those of a share: at most 1."""
    return any(isinstance(bound, (Le, Lt)) and bound.bound == 1 for bound in annotations)


def percentage_meant(value: object) -> str:
    """What to write instead of a percentage where a share is asked for, as the end of a message; else nothing.

    Args:
        value: What was given: 30, "30", "30 %" or "30%".
    """
    match = re.fullmatch(r"\s*(\d+(?:[.,]\d+)?)\s*(%?)\s*", str(value))
    if match is None:
        return ""
    percentage = float(match[1].replace(",", "."))
    if percentage == 1 and not match[2]:
        return "; it is a share, and 1 is all of it"
    if percentage > 100 or (percentage < 2 and not match[2]):
        return ""
    return f"; write {percentage / 100:g} for {percentage:g} %"
