"""The trackers of a training stage, and what they are told about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from prunecli.checkpoint.manifest import as_json
from prunecli.checkpoint.plain_data import leaves
from prunecli.engine.trackers.base import TrackedRun
from prunecli.engine.trackers.index import make_trackers
from prunecli.engine.tracking import MetricsLog, Tracking
from prunecli.pipeline.resumption import known_runs
from prunecli.pipeline.workspace import Workspace

_NOT_SETTINGS = ("stages", "track", "description", "version", "save_every", "keep_states")


def training_log(space: Workspace, stage: Any, out: Path, *, continued: bool) -> MetricsLog:
    """The log of a stage beside its checkpoint, and the trackers that a run asks for; neither exists before a row does.

    Args:
        space: The workspace.
        stage: The stage, as it will run.
        out: The checkpoint that it will write.
        continued: Whether the stage is resumed, so that earlier rows stay.

    Raises:
        RecipeError: There is no such tracker, or its library is missing.
    """
    tracking = tracking_of(space, stage, out) if stage.epochs else None
    return MetricsLog(log_path(out), tracking=tracking, continued=continued, warn=space.sink.warn)


def log_path(out: Path) -> Path:
    """The log of the training that a checkpoint comes from."""
    return out.with_suffix(".metrics.jsonl")


def tracking_of(space: Workspace, stage: Any, out: Path) -> Tracking | None:
    """The trackers that a run asks for, not started yet.

    Args:
        space: The workspace.
        stage: The stage, as it will run.
        out: The checkpoint that it will write.

    Raises:
        RecipeError: There is no such tracker, or its library is missing.
    """
    trackers = make_trackers(space.recipe.track)
    if not trackers:
        return None
    run = TrackedRun(out.stem, out.parent, _settings(space, stage))
    return Tracking(trackers, run, known_runs(out), space.sink.warn)


def _settings(space: Workspace, stage: Any) -> dict[str, JsonValue]:
    """Everything that decides about the run and is not left open, by dotted names."""
    recipe = {key: value for key, value in dataclasses.asdict(space.recipe).items() if key not in _NOT_SETTINGS}
    recipe |= {"network": space.model().name, "command": space.command, stage.stage: dataclasses.asdict(stage)}
    named = {name: as_json(value) for name, value in leaves(recipe)}
    return {name: value for name, value in named.items() if value not in (None, "", [], {})}
