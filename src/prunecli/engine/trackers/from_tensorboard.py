"""TensorBoard: event files in `tensorboard/NAME` beside the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prunecli.engine.trackers.base import TrackedRun, Tracker


class TensorBoardTracker(Tracker):
    """Writes event files. A continued run goes on in the same folder, and later steps are dropped there."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._kind: Any = SummaryWriter
        self._writer: Any = None

    def start(self, run: TrackedRun, known: str | None, step: int) -> str:
        """Opens a file; the settings are a text of its first step."""
        folder = str(run.folder / "tensorboard" / run.name)
        self._writer = self._kind(folder, purge_step=step)
        if known is None:
            self._writer.add_text("settings", f"```\n{json.dumps(dict(run.settings), indent=2)}\n```", step)
        return folder

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Adds scalars, on the disk at once."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, *, failed: bool) -> None:
        """Closes the file."""
        self._writer.close()
