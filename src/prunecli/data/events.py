"""Events of a neuromorphic camera, and how they become frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
Size = tuple[int, int]
"""Height and width in pixels."""

POLARITIES = 2
"""Channels of a frame: 0 counts events of a pixel that grew darker (off), 1 of one that grew brighter (on)."""
MOST_FRAMES = 10_000
BACKWARDS = 10_000
"""Microseconds by which a timestamp may lie before the one ahead of it; cameras do not order events strictly."""


@dataclass(frozen=True, eq=False)
class Events:
    """One recording in the order of its file; every array has shape (events,).

    Attributes:
        x: Column, from the left.
        y: Row, from the top.
        t: Time in microseconds.
        p: Polarity, 0 off or 1 on.
    """

    x: Whole
    y: Whole
    t: Whole
    p: Whole

    def __len__(self) -> int:
        return len(self.t)

    def between(self, start: int, end: int) -> Events:
        """Those with `start` <= t < `end`."""
        inside = (self.t >= start) & (self.t < end)
        return Events(self.x[inside], self.y[inside], self.t[inside], self.p[inside])


@dataclass(frozen=True)
class Binning:
    """How a recording becomes frames.

    Attributes:
        frames: How many, T.
        by: "number" gives every frame equally many events (one more or less), "time" an equal part of the recording's
            time.
        duration: Microseconds in each frame, counted from the first event: what comes after the last frame is cut off,
            a recording that ends before is followed by empty frames. Replaces `by`.
    """

    frames: int
    by: Literal["number", "time"] = "number"
    duration: int | None = None

    def __post_init__(self) -> None:
        duration = 1 if self.duration is None else self.duration
        counts = (
            type(self.frames) is int and type(duration) is int and 1 <= self.frames <= MOST_FRAMES and duration >= 1
        )
        if not counts or self.by not in ("number", "time"):
            raise ValueError(f"frames={self.frames!r}, by={self.by!r}, duration={self.duration!r} are no frames")


def to_frames(events: Events, sensor: Size, size: Size, binning: Binning) -> NDArray[np.float32]:
    """Counts events for each frame, polarity and pixel.

    Args:
        events: At least one, inside the sensor.
        sensor: Height and width of the camera.
        size: Height and width of the frames. Coordinates are scaled and rounded down, so no event is lost.
        binning: Which event belongs to which frame.

    Returns:
        Whole numbers, shape (T, 2, height, width).
    """
    frame = _frame_of(events.t, binning)
    height, width = size
    place = ((frame * POLARITIES + events.p) * height + scaled(events.y, sensor[0], height)) * width
    place += scaled(events.x, sensor[1], width)
    shape = (binning.frames, POLARITIES, height, width)
    counts = np.bincount(place[frame < binning.frames], minlength=int(np.prod(shape)))
    return counts.astype(np.float32).reshape(shape)


def _frame_of(t: Whole, binning: Binning) -> Whole:
    """Index of each event's frame; T and over for events after the last one."""
    since: Whole = t - t.min()
    frame: Whole
    if binning.duration is not None:
        frame = since // binning.duration
    elif binning.by == "time":
        frame = since * binning.frames // (since.max() + 1)
    else:
        frame = np.arange(len(t), dtype=np.int64) * binning.frames // len(t)
    return frame


def scaled(coordinates: Whole, length: int, wanted: int) -> Whole:
    """Coordinates 0 to `length` - 1 as 0 to `wanted` - 1, rounded down."""
    found: Whole = coordinates if length == wanted else coordinates * wanted // length
    return found


def pooled(frames: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Frames (T, 2, H, W) at another height and width: counts move to where `to_frames` would have put their events."""
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    rows, columns = np.zeros((size[0], height), np.float32), np.zeros((width, size[1]), np.float32)
    rows[scaled(np.arange(height), height, size[0]), np.arange(height)] = 1
    columns[np.arange(width), scaled(np.arange(width), width, size[1])] = 1
    found: NDArray[np.float32] = (rows @ frames @ columns).astype(np.float32)
    return found


def unwrapped(stamps: Whole, period: int) -> Whole:
    """Times of counters that begin again at 0 after `period`; a step is taken to be the shorter one of the two."""
    steps = np.diff(stamps, prepend=stamps[:1])
    steps = (steps + period // 2) % period - period // 2
    times: Whole = stamps[:1] + np.cumsum(steps)
    return times
