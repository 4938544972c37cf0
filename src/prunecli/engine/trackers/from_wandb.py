"""Weights & Biases: files in `wandb/` in the current folder, and nothing is sent unless WANDB_MODE says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from prunecli.engine.trackers.base import PROJECT, TrackedRun, Tracker


class WandbTracker(Tracker):
    """Writes through wandb's own process; it neither reads the terminal nor watches the machine."""

    def __init__(self) -> None:
        import wandb

        self._library: Any = wandb
        self._run: Any = None

    def start(self, run: TrackedRun, known: str | None, step: int) -> str:
        """Begins a run with a number of our own, by which a continued one joins it when both are sent."""
        mode = os.environ.get("WANDB_MODE") or "offline"
        number = known or uuid4().hex[:8]
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=number,
            resume="allow" if known is not None and mode == "online" else None,
            config=dict(run.settings),
            mode=mode,
            settings=self._library.Settings(silent=True, console="off", x_disable_stats=True, save_code=False),
        )
        return number

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Adds a row."""
        self._run.log(dict(figures), step=step)

    def finish(self, *, failed: bool) -> None:
        """Waits until everything is written."""
        self._run.finish(exit_code=int(failed))
