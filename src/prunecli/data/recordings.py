"""Recordings of events with labels: reading single ones, and shifting and mirroring their frames at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from prunecli.data.aedat import Interval
from prunecli.data.event_files import read_recording
from prunecli.data.events import Binning, Events, Size, pooled, to_frames
from prunecli.data.images import image_bytes
from prunecli.data.splits import digest
from prunecli.errors import DataError

_SHIFT = 16
"""Frames are shifted by up to 1/16 of their height or width, or by one pixel if that is more."""


@dataclass(frozen=True)
class Recording:
    """A file, or an interval of an `.aedat` file in microseconds."""

    file: str
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class EventSplit:
    """Recordings in files below `root`, read on access.

    Attributes:
        root: The folder.
        recordings: Files below it.
        labels: Class indices, shape (recordings,).
        sensor: Height and width of the camera.
        aedat: Version that `.aedat` files must have; None: any that is read.
        transposed: Whether rows and columns of `.aedat` files are swapped, because the camera lay on its side.
    """

    reads_files: ClassVar[bool] = True
    root: Path
    recordings: tuple[Recording, ...]
    labels: NDArray[np.int64]
    sensor: Size
    aedat: str | None = None
    transposed: bool = False

    def read(self, index: int) -> Events | NDArray[np.float32]:
        """Events of the recording at `index`, or frames if the file has these.

        Raises:
            UnreadableRecording: The file is damaged or of another format.
        """
        recording = self.recordings[index]
        path = self.root / recording.file
        content = read_recording(path, self.sensor, aedat=self.aedat, interval=recording.interval)
        if self.transposed and isinstance(content, Events) and path.suffix.lower() == ".aedat":
            return Events(content.y, content.x, content.t, content.p)
        return content

    def frames(self, index: int, binning: Binning, size: Size) -> NDArray[np.float32]:
        """Counts of events, shape (T, 2, height, width).

        Raises:
            UnreadableRecording: The file is damaged or of another format.
            DataError: The file has frames, but not `binning.frames` of them.
        """
        content = self.read(index)
        if isinstance(content, Events):
            return to_frames(content, self.sensor, size, binning)
        if len(content) != binning.frames:
            raise DataError(
                f"{self.root / self.recordings[index].file}: has {len(content)} frames and the network takes "
                f"{binning.frames} steps; run it for as many with --frames {len(content)}, or use the events themselves"
            )
        return pooled(content, size)

    def subset(self, indices: NDArray[np.int64]) -> EventSplit:
        """The recordings at `indices`."""
        recordings = tuple(self.recordings[i] for i in indices)
        return EventSplit(self.root, recordings, self.labels[indices], self.sensor, self.aedat, self.transposed)

    def fingerprint(self) -> str:
        """Hash of file names, sizes, intervals and labels; events are not read."""
        sizes = {recording.file: -1 for recording in self.recordings}
        for file in sizes:
            sizes[file] = image_bytes(self.root / file)
        lines = [f"{r.file} {sizes[r.file]} {r.interval or ''}" for r in self.recordings]
        return digest("\n".join(lines).encode(), np.ascontiguousarray(self.labels).data)


class EventDataset(Dataset[tuple[Tensor, Tensor]]):
    """Frames (T, 2, H, W) of recordings with their labels.

    Args:
        split: The recordings.
        binning: How they become frames.
        size: Height and width of the frames.
        shift: Whether to shift all frames of a recording together by a few random pixels, leaving the border empty.
        flip: Whether to mirror recordings at random, with probability 1/2.
    """

    def __init__(self, split: EventSplit, binning: Binning, size: Size, *, shift: bool, flip: bool) -> None:
        self._split, self._binning, self._size = split, binning, size
        self._shift, self._flip = shift, flip

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        frames = torch.from_numpy(self._split.frames(index, self._binning, self._size))
        if self._flip and torch.rand(()) < 0.5:
            frames = frames.flip(-1)
        if self._shift:
            limits = [max(1, length // _SHIFT) for length in self._size]
            down, right = (int(torch.randint(-limit, limit + 1, ())) for limit in limits)
            frames = shifted(frames, down, right)
        return frames, torch.tensor(self._split.labels[index])


def shifted(frames: Tensor, down: int, right: int) -> Tensor:
    """Frames (..., H, W) shifted by whole pixels; the border is 0."""
    height, width = frames.shape[-2:]
    result = torch.zeros_like(frames)
    result[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = frames[
        ..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result
