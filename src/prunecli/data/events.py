"""Events of a neuromorphic camera, and making frames of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Size = tuple[int, int]
"""Height and width in pixels."""

POLARITIES = 2
"""Channels of a frame: 0 counts events of pixels that got darker (off), 1 of pixels that got brighter (on)."""
_MOST_FRAMES = 10_000
BACKWARDS = 10_000
"""Microseconds by which a timestamp may precede the one before it; cameras do not order events strictly."""


@dataclass(frozen=True, eq=False)
class Events:
    """One recording in the order of its file; every array has shape (events,).

    Attributes:
        x: Column, from the left.
        y: Row, from the top.
        t: Time in microseconds.
        p: Polarity, 0 off or 1 on.
    """

    x: Integers
    y: Integers
    t: Integers
    p: Integers

    def __len__(self) -> int:
        return len(self.t)

    def between(self, start: int, end: int) -> Events:
        """Events with `start` <= t < `end`, in microseconds."""
        inside = (self.t >= start) & (self.t < end)
        return Events(self.x[inside], self.y[inside], self.t[inside], self.p[inside])


@dataclass(frozen=True)
class Binning:
    """How a recording becomes frames.

    Attributes:
        frames: Number of frames, T.
        by: "number": frames have the same number of events, give or take one; "time": frames last equally long.
        duration: Length of a frame in microseconds, from the first event on; events after the last frame are dropped,
            and a shorter recording ends in empty frames. Replaces `by`.
    """

    frames: int
    by: Literal["number", "time"] = "number"
    duration: int | None = None

    def __post_init__(self) -> None:
        duration = 1 if self.duration is None else self.duration
        counts = (
            type(self.frames) is int and type(duration) is int and 1 <= self.frames <= _MOST_FRAMES and duration >= 1
        )
        if not counts or self.by not in ("number", "time"):
            raise ValueError(f"frames={self.frames!r}, by={self.by!r}, duration={self.duration!r} do not make frames")


def to_frames(events: Events, sensor: Size, size: Size, binning: Binning) -> NDArray[np.float32]:
    """Counts events for each frame, polarity and pixel.

    Args:
        events: At least one event; all lie inside the sensor.
        sensor: Height and width of the camera.
        size: Height and width of the frames. Coordinates are scaled and rounded down, so no event is lost.
        binning: Which event belongs to which frame.

    Returns:
        Counts, shape (T, 2, height, width).
    """
    frame = _frame_of(events.t, binning)
    height, width = size
    index = ((frame * POLARITIES + events.p) * height + _scaled(events.y, sensor[0], height)) * width
    index += _scaled(events.x, sensor[1], width)
    shape = (binning.frames, POLARITIES, height, width)
    counts = np.bincount(index[frame < binning.frames], minlength=int(np.prod(shape)))
    return counts.astype(np.float32).reshape(shape)


def _frame_of(t: Integers, binning: Binning) -> Integers:
    """Index of each event's frame; T or more for events after the last frame."""
    since: Integers = t - t.min()
    frame: Integers
    if binning.duration is not None:
        frame = since // binning.duration
    elif binning.by == "time":
        frame = since * binning.frames // (since.max() + 1)
    else:
        frame = np.arange(len(t), dtype=np.int64) * binning.frames // len(t)
    return frame


def _scaled(coordinates: Integers, length: int, new_length: int) -> Integers:
    """Maps coordinates from 0 to `length` - 1 to 0 to `new_length` - 1, rounding down."""
    if length == new_length:
        return coordinates
    return coordinates * new_length // length


def pooled(frames: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Frames (T, 2, H, W) at another height and width: counts go where `to_frames` would have put the events."""
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    rows, columns = np.zeros((size[0], height), np.float32), np.zeros((width, size[1]), np.float32)
    rows[_scaled(np.arange(height), height, size[0]), np.arange(height)] = 1
    columns[np.arange(width), _scaled(np.arange(width), width, size[1])] = 1
    resized: NDArray[np.float32] = (rows @ frames @ columns).astype(np.float32)
    return resized


def unwrapped(stamps: Integers, period: int) -> Integers:
    """Continuous times from a counter that restarts at 0 after `period`; each step is taken as the shortest."""
    steps = np.diff(stamps, prepend=stamps[:1])
    steps = (steps + period // 2) % period - period // 2
    times: Integers = stamps[:1] + np.cumsum(steps)
    return times
