"""trackio: a SQLite database in TRACKIO_DIR, by default in the cache of Hugging Face."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any
from uuid import uuid4

from prunecli.engine.trackers.base import PROJECT, TrackedRun, Tracker


class TrackioTracker(Tracker):
    """Writes to trackio's database; what TRACKIO_SPACE_ID and the like say is trackio's own affair."""

    def __init__(self) -> None:
        with redirect_stdout(io.StringIO()):
            import trackio

        self._library: Any = trackio
        self._run: Any = None

    def start(self, run: TrackedRun, known: str | None, step: int) -> str:
        """Begins a run with a name of its own, because trackio continues runs by name."""
        name = known or f"{run.name}-{uuid4().hex[:6]}"
        with redirect_stdout(io.StringIO()):  # it greets
            self._run = self._library.init(
                project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
                name=name,
                config=dict(run.settings),
                resume="never" if known is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return name

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Adds a row, which a thread of trackio's writes."""
        self._run.log(dict(figures), step=step)

    def finish(self, *, failed: bool) -> None:
        """Waits until everything is written."""
        with redirect_stdout(io.StringIO()):
            self._library.finish()
