"""All stages of a recipe, one after the other, into one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.data.catalog import find_data
from prunecli.errors import GateFailed, RecipeError
from prunecli.models.catalog import split_reference
from prunecli.pipeline.comparing import compare_run, judge
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.stages import eval_stage, prune_stage, train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.resolve import Plan
from prunecli.recipe.schema import CompareStage, EvalStage, PruneStage, TrainStage
from prunecli.report.comparison import Comparison, Gate

_NAMES = {"train": "trained", "prune": "pruned", "finetune": "finetuned"}


@dataclass(frozen=True)
class StageRecord:
    """What one stage wrote, with its main figures."""

    stage: str
    path: Path
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class RunOutcome:
    """What a run wrote, in order, its last comparison, and the gate that failed, to be raised when all is shown."""

    folder: Path
    stages: tuple[StageRecord, ...]
    comparison: Comparison | None
    failure: GateFailed | None


def check_plan(plan: Plan) -> list[Path]:
    """The files each stage will write, relative to the run's folder.

    Raises:
        RecipeError: There are no stages, a report's name is not a plain one, or a comparison has too little to compare.
        ModelError: The architecture does not exist.
        DataError: The data set does not exist.
    """
    if plan.recipe.model.ref is not None:
        split_reference(plan.recipe.model.ref)
    if plan.recipe.data.name is not None:
        find_data(plan.recipe.data.name)
    if not plan.recipe.stages:
        raise RecipeError("the recipe has no stages; add for instance `stages: [{stage: train}]`")
    files: list[Path] = []
    evaluations = 0
    last = "baseline"
    for place, stage in enumerate(plan.recipe.stages):
        if isinstance(stage, EvalStage):
            evaluations += 1
            name = stage.report or f"{last}.json"
            if Path(name).name != name or not name.endswith(".json"):
                raise RecipeError(f"stages.{place}.report: {name!r} has to be a plain file name ending in .json")
        elif isinstance(stage, CompareStage):
            name = "comparison.json"
            if stage.fail_if is not None:
                Gate(stage.fail_if)
            if evaluations < 2:
                raise RecipeError(f"stages.{place}: compare needs two eval stages before it, not {evaluations}")
        else:
            last = _NAMES[stage.stage]
            name = f"{last}.safetensors"
        if Path(name) in files:  # the same kind of stage again
            name = f"{Path(name).stem}-{place}{Path(name).suffix}"
        files.append(Path(name))
    return files


def run_recipe(plan: Plan, folder: Path, sink: Sink, command: str = "") -> RunOutcome:
    """Runs all stages; `folder` receives the plan, every checkpoint, report and metrics log.

    Raises:
        PruneError: A stage fails; what earlier stages wrote stays.
    """
    files = check_plan(plan)
    space = Workspace(plan.recipe, sink, command)
    space.model()  # a network that cannot be loaded is noticed before anything is written
    write_text_atomically(folder / "plan.yaml", yaml.safe_dump(plan.to_dict(), sort_keys=False))
    records: list[StageRecord] = []
    comparison: Comparison | None = None
    failure: GateFailed | None = None
    for place, (stage, name) in enumerate(zip(plan.recipe.stages, files, strict=True), start=1):
        sink.note(f"stage {place}/{len(files)}: {stage.stage}")
        path = folder / name
        figures: dict[str, Any] = {}
        if isinstance(stage, EvalStage):
            figures = eval_stage(space, stage, path).metrics.model_dump(mode="json", exclude_none=True)
        elif isinstance(stage, CompareStage):
            comparison = compare_run(space.reports, space.device)
            write_text_atomically(path, comparison.model_dump_json(by_alias=True, indent=2) + "\n")
            failure = judge(comparison, Gate(stage.fail_if) if stage.fail_if is not None else None)
        elif isinstance(stage, PruneStage):
            report = prune_stage(space, stage, path).report
            figures = {"achieved": report.achieved, "verify_error": report.verify_error}
        else:
            assert isinstance(stage, TrainStage)
            figures = asdict(train_stage(space, stage, path).chosen)
        records.append(StageRecord(stage.stage, path, figures))
    return RunOutcome(folder, tuple(records), comparison, failure)
