"""All stages of a recipe, one after the other, into one folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prunecli import ranks
from prunecli.checkpoint.durable import crash_point, remove_leftovers, write_atomically, write_text_atomically
from prunecli.checkpoint.locking import HOLDER_NAME, LOCK_NAME, locked
from prunecli.data.catalog import find_data
from prunecli.engine.trackers.index import TRACKERS
from prunecli.errors import GateFailed, PruneError, RecipeError
from prunecli.models.catalog import split_reference
from prunecli.pipeline.resumption import NOT_IDENTITY_OF_STAGES, discard_states
from prunecli.pipeline.run_folder import PLAN_NAME, RUN_NAME, check_run, read_run
from prunecli.pipeline.stages.compare import judge
from prunecli.pipeline.stages.runners import RUNNERS, Planned
from prunecli.pipeline.tracked import log_path
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.loader import KeyPath
from prunecli.recipe.refusals import Refusals
from prunecli.recipe.resolve import Plan
from prunecli.recipe.schema import CompareStage
from prunecli.recipe.writing import recipe_text
from prunecli.report.comparison import Comparison, Gate

_RUN_SCHEMA = "prunecli.run/1"


@dataclass(frozen=True)
class StageRecord:
    """What one stage wrote, with its main figures."""

    stage: str
    path: Path
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class RunOutcome:
    """What a run wrote, in order, its last comparison, and the failed gate, to be raised after printing."""

    folder: Path
    stages: tuple[StageRecord, ...]
    comparison: Comparison | None
    failure: GateFailed | None


def check_plan(plan: Plan, refusals: Refusals | None = None) -> list[Path]:
    """The files each stage will write, relative to the run's folder.

    Args:
        plan: The plan.
        refusals: Where mistakes go; by default the first is raised.

    Raises:
        RecipeError: There are no stages, a tracker does not exist, a report's name is not a plain one, or a comparison
            has too little to compare.
        ModelError: The architecture does not exist.
        DataError: The data set does not exist.
    """
    recipe, refusals = plan.recipe, refusals or Refusals()

    def checked(path: KeyPath, check: Callable[[], Any]) -> Any:
        try:
            return check()
        except PruneError as error:
            refusals.add(plan.located(path, error), error)
            return None

    ref, data = recipe.model.ref, recipe.data.name
    if ref is not None:
        checked(("model", "ref"), lambda: split_reference(ref))
    if data is not None:
        checked(("data", "name"), lambda: find_data(data))
    for index, tracker in enumerate(recipe.track):
        checked(("track", index), partial(TRACKERS.require, tracker))
    if not recipe.stages and not refusals.kept:
        missing = RecipeError("the recipe has no stages; add for instance `stages: [{stage: train}]`")
        refusals.add(plan.located(("stages",), missing))
    files: list[Path] = []
    # Where stages were refused, nobody knows how many of them would have evaluated.
    before = Planned() if plan.places is None else Planned(evaluations=2)
    for index, stage in zip(plan.places or range(len(recipe.stages)), recipe.stages, strict=True):
        here: KeyPath = ("stages", index)
        for key, check in RUNNERS[stage.stage].values.items():
            checked((*here, key), partial(check, stage, f"stages.{index}"))
        name = checked(here, partial(RUNNERS[stage.stage].plan, stage, f"stages.{index}", before))
        if name is None:
            continue
        if Path(name) in files:  # the same kind of stage again
            name = f"{Path(name).stem}-{index}{Path(name).suffix}"
        files.append(Path(name))
    return files


def run_recipe(plan: Plan, folder: Path, space: Workspace) -> RunOutcome:
    """Runs all stages; `folder` receives the plan, every checkpoint, report and metrics log.

    Several processes (see `prunecli.ranks`) run every stage together; rank 0 writes.

    Finished stages are recorded in `run.json`. With `space.resume` they are not run again, and the next one resumes
    from its saved state.

    Raises:
        RecipeError: Another process runs there, or the run to resume was a different one.
        PruneError: A stage fails; what earlier stages wrote stays.
    """
    files = [folder / name for name in check_plan(plan)]
    with locked(folder, space.command):
        progress = _progress(plan, folder, space)
        ranks.wait_for_all()  # until each has read what the first one replaces
        space.stored_model()  # a network that cannot be loaded is noticed before anything is written
        progress.save()
        ranks.by_first(lambda: write_text_atomically(folder / PLAN_NAME, plan_text(plan)))
        space.in_run = True
        comparison: Comparison | None = None
        for index, (stage, path) in enumerate(zip(plan.recipe.stages, files, strict=True)):
            runner = RUNNERS[stage.stage]
            if index < len(progress.done):
                if not path.is_file():
                    raise RecipeError(f"{path}: is missing, so the run cannot be resumed; start again with --force")
                comparison = runner.skip(space, stage, path) or comparison
                continue
            space.sink.note(f"stage {index + 1}/{len(files)}: {stage.stage}")
            result = runner.run(space, stage, path)
            comparison = result.comparison or comparison
            progress.done.append(StageRecord(stage.stage, path, result.figures))
            progress.save()
            crash_point("run:noted")
            discard_states(path)
            space.resume = False  # the next stage starts from the beginning
    gates = [stage.fail_if for stage in plan.recipe.stages if isinstance(stage, CompareStage)]
    gate = Gate(gates[-1]) if gates and gates[-1] is not None else None
    comparison, failure = judge(comparison, gate) if comparison is not None else (None, None)
    return RunOutcome(folder, tuple(progress.done), comparison, failure)


def is_finished(plan: Plan, folder: Path, *, whole: bool = False) -> bool:
    """Whether a run of these stages in `folder` has finished all of them, and its reports are there and undamaged.

    Args:
        plan: The plan.
        folder: Of the run.
        whole: Whether its checkpoints have to be there, too.
    """
    try:
        if [kind for kind, _ in read_run(folder)] != [stage.stage for stage in plan.recipe.stages]:
            return False
        check_run(folder, whole=whole)
    except PruneError:
        return False
    return True


def can_continue(plan: Plan, folder: Path) -> bool:
    """Whether a run in `folder` is one of this plan, and has all files that it says it has written, undamaged."""
    try:
        recorded = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))["plan_sha256"]
        if recorded != _plan_sha256(plan):
            return False
        check_run(folder, whole=True)
        return True
    except (PruneError, OSError, ValueError, KeyError, TypeError):
        return False


def start_after(plan: Plan, folder: Path, earlier: Path) -> None:
    """Makes `folder` that of a run of `plan` whose first stages are done: those of the finished run in `earlier`.

    That these are the same stages, and start from the same network and data, is for the caller to know. Checkpoints are
    the same files under another name where the file system can do that, else copies.

    Raises:
        RecipeError: The earlier run has other kinds of stages, or files of it are missing.
        ResourceError: A file cannot be written.
    """
    recorded = json.loads((earlier / RUN_NAME).read_text(encoding="utf-8")) if (earlier / RUN_NAME).is_file() else {}
    stages = recorded.get("stages", [])
    kinds = [stage.stage for stage in plan.recipe.stages[: len(stages)]]
    if not stages or [entry["stage"] for entry in stages] != kinds:
        raise RecipeError(f"{earlier}: is not the beginning of this run; remove it, and start again")
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for entry in stages:
        source = earlier / Path(entry["path"]).name
        if not source.is_file():
            raise RecipeError(f"{source}: is missing, so nothing can start from it; remove {earlier}, and start again")
        for file in (source, log_path(source)):
            if file.is_file():
                _link(file, folder / file.name)
        done.append(StageRecord(entry["stage"], folder / source.name, entry["figures"]))
    _Progress(folder / RUN_NAME, _plan_sha256(plan), done).save()


def _link(source: Path, target: Path) -> None:
    """Gives a checkpoint a second name; anything that may be written to again, and where that fails, is copied."""
    target.unlink(missing_ok=True)
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


@dataclass
class _Progress:
    """The finished stages of a run, as recorded in `run.json`."""

    path: Path
    plan_sha256: str
    done: list[StageRecord]

    def save(self) -> None:
        stages = [{"stage": r.stage, "path": r.path.name, "figures": dict(r.figures)} for r in self.done]
        text = json.dumps({"schema": _RUN_SCHEMA, "plan_sha256": self.plan_sha256, "stages": stages}, indent=2)
        ranks.by_first(lambda: write_text_atomically(self.path, text + "\n"))


def _progress(plan: Plan, folder: Path, space: Workspace) -> _Progress:
    """What an earlier run in `folder` finished, if it is to be resumed; turns `space.resume` off if not."""
    path = folder / RUN_NAME
    plan_sha256 = _plan_sha256(plan)
    for written in (path, folder / PLAN_NAME):
        remove_leftovers(written)
    if not space.resume or not path.is_file():
        if space.resume:
            if any(entry.name not in (LOCK_NAME, HOLDER_NAME) for entry in folder.glob("[!.]*")):
                raise RecipeError(f"{folder}: holds no run to resume (no {RUN_NAME}); give its folder with --out")
            space.sink.note(f"{folder}: no run to resume; starting from the beginning")
        space.resume = False
        return _Progress(path, plan_sha256, [])
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        kinds = [stage.stage for stage in plan.recipe.stages]
        done = [
            StageRecord(entry["stage"], folder / Path(entry["path"]).name, entry["figures"])
            for entry in noted["stages"]
        ]
        if noted["schema"] != _RUN_SCHEMA or [record.stage for record in done] != kinds[: len(done)]:
            raise ValueError(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"{path}: is damaged; start the run again with --force") from error
    if noted.get("plan_sha256") != plan_sha256:
        raise RecipeError(
            f"{folder / PLAN_NAME}: differs from this plan; give the same recipe and values, or start again "
            "with --force"
        )
    return _Progress(path, plan_sha256, done)


def _plan_sha256(plan: Plan) -> str:
    values = plan.to_dict()
    for stage in values["stages"]:
        for name in NOT_IDENTITY_OF_STAGES:  # a run may go on with others
            stage.pop(name, None)
    return hashlib.sha256(recipe_text(values).encode()).hexdigest()


def plan_text(plan: Plan) -> str:
    """A plan as the recipe that a run keeps in its folder."""
    return recipe_text(plan.to_dict())
