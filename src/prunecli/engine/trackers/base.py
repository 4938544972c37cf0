"""What a tracker is: a program that keeps the curves of training runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

PROJECT = "prune"
"""What trackers call all runs of this program together, unless their own environment variables say otherwise."""


@dataclass(frozen=True)
class TrackedRun:
    """A training run, as trackers are told of it.

    Attributes:
        name: The checkpoint's name.
        folder: The folder of the checkpoint.
        settings: What it was run with, by dotted names.
    """

    name: str
    folder: Path
    settings: Mapping[str, JsonValue]


class Tracker(ABC):
    """Keeps the curves of one training run; making one imports the library.

    Whatever these functions raise costs the tracking and not the training. They print nothing.

    Raises:
        ImportError: The library is not installed, or not one that works.
    """

    @abstractmethod
    def start(self, run: TrackedRun, known: str | None, step: int) -> str | None:
        """Begins a run, or continues one.

        Args:
            run: The run.
            known: What an earlier part of the run returned here; None: a new one.
            step: The next step; a tracker that holds later ones may drop them.

        Returns:
            What the tracker knows the run by, to continue it; None: it needs nothing to do so, or cannot.
        """

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve."""

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """Ends the run, which was started."""
