"""Boxes as files give them: which are cut to the image, which are left out, and which are an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prunecli.data.boxes import Objects
from prunecli.errors import DataError

_ROUNDING = 1.0
"""Pixels by which a box may stick out without a word: files round, and some count pixels from one."""


@dataclass
class BoxCounts:
    """What was done to the boxes of a data set, for a note.

    Attributes:
        cut: Boxes that stuck out of their image.
        empty: Boxes without an area, which are left out.
        ignored: Crowds, and objects that are marked as difficult.
        first: Where the first box of a kind is.
    """

    cut: int = 0
    empty: int = 0
    ignored: int = 0
    first: dict[str, str] = field(default_factory=dict)

    def notes(self, name: str) -> tuple[str, ...]:
        """A line for each kind."""
        notes, first = [], {kind: f"first {where}" for kind, where in self.first.items()}
        if self.cut:
            notes.append(f"{name}: boxes that stick out of their image and are cut: {self.cut:,}, {first['cut']}")
        if self.empty:
            notes.append(f"{name}: boxes without an area, left out: {self.empty:,}, {first['empty']}")
        if self.ignored:
            notes.append(f"{name}: crowds and difficult objects, which count nowhere: {self.ignored:,}")
        return tuple(notes)


class ImageBoxes:
    """Collects the boxes of one image.

    Args:
        size: Width and height of the image, in the unit of the boxes.
        pixel: A pixel in that unit.
        counts: What is done to them.
    """

    def __init__(self, size: tuple[float, float], pixel: float, counts: BoxCounts) -> None:
        self._size, self._pixel, self._counts = size, pixel, counts
        self._rows: list[tuple[Sequence[float], int, bool]] = []

    def add(self, box: tuple[float, float, float, float], label: int, ignored: bool, where: str) -> None:
        """Takes one box.

        Args:
            box: Left, top, right, bottom.
            label: Class number.
            ignored: Whether it is to be left alone.
            where: File and place in it, for messages.

        Raises:
            DataError: It has no finite numbers, is inside out, or lies outside the image.
        """
        left, top, right, bottom = box
        width, height = self._size
        shown = f"{where}: the box from {left:g}, {top:g} to {right:g}, {bottom:g}"
        if not np.isfinite(box).all():
            raise DataError(f"{shown} is not made of numbers; correct it")
        if right < left or bottom < top:
            raise DataError(f"{shown} is inside out; correct it")
        if right == left or bottom == top:
            self._counts.empty += 1
            self._counts.first.setdefault("empty", where)
            return
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise DataError(f"{shown} lies outside the image of {width:g}x{height:g}; correct it")
        inside = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _ROUNDING * self._pixel:
            self._counts.cut += 1
            self._counts.first.setdefault("cut", where)
        self._counts.ignored += ignored
        self._rows.append((inside, label, ignored))

    def objects(self) -> Objects:
        """Everything so far; an image may have none."""
        boxes, labels, ignored = zip(*self._rows, strict=True) if self._rows else ((), (), ())
        return Objects(
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.array(ignored, dtype=np.bool_),
        )
