"""Recordings of events with labels: reading them one at a time, and moving their frames at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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

_REACH = 16
"""Frames are shifted by up to this part of their height or width, at least by one pixel."""


@dataclass(frozen=True)
class Recording:
    """A file, or the part of an `.aedat` file from one time to another, in microseconds."""

    file: str
    interval: Interval | None = None


@dataclass(frozen=True, eq=False)
class EventSplit:
    """Recordings in files below `root`, read when they are asked for.

    Attributes:
        root: Folder.
        recordings: Files below it.
        labels: Class indices, shape (recordings,).
        sensor: Height and width of the camera.
        aedat: Version that `.aedat` files have to be of; None: any that is read.
        transposed: Whether rows and columns of `.aedat` files change places, because the camera lay on its side.
    """

    root: Path
    recordings: tuple[Recording, ...]
    labels: NDArray[np.int64]
    sensor: Size
    aedat: str | None = None
    transposed: bool = False

    def read(self, index: int) -> Events | NDArray[np.float32]:
        """Events of the recording at `index`, or frames that were made of them before.

        Raises:
            UnreadableRecording: The file is damaged or of another format.
        """
        recording = self.recordings[index]
        path = self.root / recording.file
        found = read_recording(path, self.sensor, aedat=self.aedat, interval=recording.interval)
        if self.transposed and isinstance(found, Events) and path.suffix.lower() == ".aedat":
            return Events(found.y, found.x, found.t, found.p)
        return found

    def frames(self, index: int, binning: Binning, size: Size) -> NDArray[np.float32]:
        """Counts of events, shape (T, 2, height, width).

        Raises:
            UnreadableRecording: The file is damaged or of another format.
            DataError: It holds frames, and another number of them.
        """
        found = self.read(index)
        if isinstance(found, Events):
            return to_frames(found, self.sensor, size, binning)
        if len(found) != binning.frames:
            raise DataError(
                f"{self.root / self.recordings[index].file}: has {len(found)} frames and the network takes "
                f"{binning.frames} steps; run it for as many with --frames {len(found)}, or use the events themselves"
            )
        return pooled(found, size)

    def subset(self, indices: NDArray[np.int64]) -> EventSplit:
        """The recordings at `indices`."""
        chosen = tuple(self.recordings[i] for i in indices)
        return EventSplit(self.root, chosen, self.labels[indices], self.sensor, self.aedat, self.transposed)

    def fingerprint(self) -> str:
        """Hash of file names, sizes, intervals and labels; events are not read."""
        sizes = {recording.file: -1 for recording in self.recordings}
        for file in sizes:
            sizes[file] = image_bytes(self.root / file)
        lines = [f"{one.file} {sizes[one.file]} {one.interval or ''}" for one in self.recordings]
        return digest("\n".join(lines).encode(), np.ascontiguousarray(self.labels).data)


class EventDataset(Dataset[tuple[Tensor, Tensor]]):
    """Frames (T, 2, H, W) of recordings with their labels.

    Args:
        split: Recordings.
        binning: How they become frames.
        size: Height and width of the frames.
        shift: Whether all frames of a recording are moved together by a few pixels at random, the rest left empty.
        flip: Whether half of the recordings, at random, are mirrored.
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
            reach = [max(1, length // _REACH) for length in self._size]
            down, right = (int(torch.randint(-far, far + 1, ())) for far in reach)
            frames = shifted(frames, down, right)
        return frames, torch.tensor(self._split.labels[index])


def shifted(frames: Tensor, down: int, right: int) -> Tensor:
    """Frames (..., H, W) moved by whole pixels; what leaves them is lost, what comes in is 0."""
    height, width = frames.shape[-2:]
    moved = torch.zeros_like(frames)
    moved[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = frames[
        ..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved
