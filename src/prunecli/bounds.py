"""Bounds of numbers in annotations, for pydantic; annotated_types has the same, and importing it takes a while.

Help and completion read annotations for what they say of options, and check nothing. So a bound here is a group of one
(`annotated_types.GroupedMetadata`), which whoever checks values unfolds.
"""

from __future__ import annotations

from collections.abc import Iterator
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
