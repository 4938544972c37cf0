"""Where an unfinished stage keeps its states, which run they belong to, and when it is resumed from them."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from prunecli import ranks
from prunecli.checkpoint.durable import crash_point, remove_leftovers, require_space
from prunecli.checkpoint.locking import locked
from prunecli.checkpoint.manifest import as_json
from prunecli.checkpoint.runstate import ExtraState, RunIdentity, StateStore
from prunecli.errors import RecipeError
from prunecli.measure.environment import library_versions
from prunecli.pipeline.state import RunState

_COPIES_IN_A_STATE = 4
"""Weights, the best weights so far, and up to two moments of the optimizer."""
NOT_IDENTITY = frozenset(("root", "download", "workers"))
"""Data settings that change nothing about what is computed."""
_MEASURED_AFTERWARDS = frozenset(("evaluate", "evaluation_images"))
"""Settings of a stage that change nothing about its checkpoint."""
NOT_IDENTITY_OF_STAGES = frozenset(("sharding",))
"""Settings of a stage that change nothing about what is computed."""


def _state_folder(out: Path) -> Path:
    """The folder of the states of the stage that will write `out`."""
    return out.with_name(f"{out.name}.state")


def known_runs(out: Path) -> Path:
    """The file with what trackers know the run of that stage by, while it is unfinished."""
    return _state_folder(out) / "trackers.json"


def is_unfinished(out: Path) -> bool:
    """Whether an unfinished stage left states for `out` behind."""
    return any(_state_folder(out).glob("*state-*"))


@contextmanager
def saved_states(space: RunState, out: Path, identity: Mapping[str, JsonValue]) -> Iterator[StateStore]:
    """Holds the lock on `out` and keeps states of the stage that writes it, which are removed when it is done.

    Args:
        space: Says whether to resume, and how often to save.
        out: The checkpoint that the stage will write.
        identity: See `identity_of`.

    Raises:
        RecipeError: Another process writes `out`, or there is an unfinished run and neither --resume nor --force.
    """
    folder = _state_folder(out)
    with locked(folder, space.command, out):
        remove_leftovers(out)
        if out.exists() and not space.may_replace:  # another process had the lock and has just finished
            raise RecipeError(f"{out}: was created in the meantime; add --force to replace it, or choose another name")
        store = StateStore(
            folder,
            RunIdentity(identity, _environment(space)),
            keep=space.recipe.keep_states,
            every=space.recipe.save_every,
            warn=space.sink.warn,
            note=space.sink.note,
            command=space.resume_command,
            in_run=space.in_run,
            extra=ExtraState(lambda: space.bad.left_out, space.bad.restore),
        )
        unfinished = ranks.from_first(store.exists())
        if unfinished and not space.resume:
            if not space.force:
                raise RecipeError(
                    f"{folder}: holds the state of an unfinished run; add --resume to continue it, or --force to start "
                    "again"
                )
            store.discard()
            known_runs(out).unlink(missing_ok=True)
        elif space.resume and not unfinished:
            space.sink.note(f"{folder}: no saved state; starting from the beginning")
        try:
            yield store
        except KeyboardInterrupt as error:
            raise store.aborted(getattr(error, "signal", signal.SIGINT)) from error
        finally:
            if ranks.writes() and not store.exists():  # nothing will be continued
                known_runs(out).unlink(missing_ok=True)
        crash_point("stage:saved")
        if not space.in_run:
            known_runs(out).unlink(missing_ok=True)
            store.discard()


def discard_states(out: Path) -> None:
    """Removes the states of the stage that wrote `out`."""
    ranks.by_first(lambda: shutil.rmtree(_state_folder(out), ignore_errors=True))


def identity_of(space: RunState, stage: Any, **files: str | None) -> dict[str, JsonValue]:
    """Everything that determines the result of a stage, by names for messages; `files` are hashes of further files."""
    loaded = space.model()
    recipe = space.recipe
    data = {key: value for key, value in dataclasses.asdict(recipe.data).items() if key not in NOT_IDENTITY}
    identity: dict[str, Any] = {f"data.{key}": value for key, value in data.items()}
    left_out = _MEASURED_AFTERWARDS | NOT_IDENTITY_OF_STAGES
    identity |= {key: value for key, value in dataclasses.asdict(stage).items() if key not in left_out}
    identity |= {"seed": recipe.seed, "model": loaded.sha256 or loaded.manifest.architecture.ref, **files}
    if space.data_name() is not None:
        parts = {"training images": space.data().train, "validation images": space.data().validation}
        identity |= {name: part.fingerprint() for name, part in parts.items() if part is not None}
    return {key: as_json(value) for key, value in identity.items()}


def room_for(space: RunState, out: Path, *, states: bool) -> None:
    """Checks before any work that the checkpoint, and `states` beside it, can be written.

    Raises:
        ResourceError: The folder cannot be written, or has too little space.
    """
    model = space.model().model
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    require_space(out, size * (2 + (_COPIES_IN_A_STATE * (space.recipe.keep_states + 1) if states else 0)))


def _environment(space: RunState) -> dict[str, JsonValue]:
    versions = library_versions()
    processes = {"processes": ranks.world_size()}
    return {"device": str(space.device), "threads": torch.get_num_threads(), **processes, **versions}
