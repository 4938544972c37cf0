"""What a run does with each kind of stage: one entry for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunecli import ranks
from prunecli.checkpoint.durable import write_text_atomically
from prunecli.errors import RecipeError
from prunecli.models.loading import load_file
from prunecli.pipeline.resumption import discard_states
from prunecli.pipeline.stages.compare import judge
from prunecli.pipeline.stages.compare_networks import compare_run
from prunecli.pipeline.stages.eval import eval_stage, required, unmet
from prunecli.pipeline.stages.prune import prune_stage
from prunecli.pipeline.stages.train import train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import CompareStage, EvalStage, PruneStage, Stage
from prunecli.report.comparison import Comparison, Gate, read_comparison
from prunecli.report.pareto import with_fronts
from prunecli.report.results import StageOutcome


@dataclass(frozen=True)
class StageResult:
    """Main figures of one stage, and the comparison if it was one."""

    figures: dict[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None


@dataclass
class Planned:
    """What the stages before will have left.

    Attributes:
        latest: Name of the newest network, without its suffix.
        evaluations: Reports that there will be.
    """

    latest: str = "baseline"
    evaluations: int = 0


@dataclass(frozen=True)
class Runner:
    """What a run does with one kind of stage.

    Attributes:
        plan: Checks a stage, called by its key in the recipe, and names the file that it will write.
        run: Runs it and writes the file.
        skip: Brings the workspace to where the finished stage left it; returns the comparison if it was one.
        values: Checks of single values by their name, each called by the stage's key in the recipe, before `plan`.
    """

    plan: Callable[[Any, str, Planned], str]
    run: Callable[[Workspace, Any, Path], StageResult]
    skip: Callable[[Workspace, Any, Path], Comparison | None]
    values: Mapping[str, Callable[[Any, str], object]] = field(default_factory=dict)


def _checkpoint_runner(name: str, stage_function: Callable[[Workspace, Any, Path], StageOutcome]) -> Runner:
    """A runner of stages that write a checkpoint called `name`."""

    def plan(stage: Stage, key: str, before: Planned) -> str:
        before.latest = name
        return f"{name}.safetensors"

    def run(space: Workspace, stage: Stage, path: Path) -> StageResult:
        return StageResult(stage_function(space, stage, path).figures())

    def skip(space: Workspace, stage: Stage, path: Path) -> None:
        discard_states(path)
        if isinstance(stage, PruneStage):
            space.parent = space.model()
        space.loaded = load_file(path, allow_nonfinite=space.recipe.model.allow_nonfinite)

    return Runner(plan, run, skip)


def _plan_eval(stage: EvalStage, key: str, before: Planned) -> str:
    before.evaluations += 1
    return stage.report or f"{before.latest}.json"


def _check_report(stage: EvalStage, key: str) -> None:
    name = stage.report
    if name is not None and (Path(name).name != name or not name.endswith(".json")):
        raise RecipeError(f"{key}.report: {name!r} has to be a plain file name ending in .json")


def _check_required(stage: EvalStage, key: str) -> None:
    required(stage)


def _run_eval(space: Workspace, stage: EvalStage, path: Path) -> StageResult:
    report = eval_stage(space, stage, path)
    failure = unmet(stage, report)
    if failure is not None:
        raise failure
    return StageResult(report.metrics.model_dump(mode="json", exclude_none=True))


def _skip_eval(space: Workspace, stage: EvalStage, path: Path) -> None:
    space.reports.append(path)


def _plan_compare(stage: CompareStage, key: str, before: Planned) -> str:
    if before.evaluations < 2:
        raise RecipeError(f"{key}: compare needs two eval stages before it, not {before.evaluations}")
    return "comparison.json"


def _check_gate(stage: CompareStage, key: str) -> None:
    if stage.fail_if is not None:
        Gate(stage.fail_if, "fail_if")


def _run_compare(space: Workspace, stage: CompareStage, path: Path) -> StageResult:
    def compared() -> Comparison:
        comparison = with_fronts(compare_run(space.reports, space.device))
        write(comparison)
        if stage.fail_if is not None:  # after it is written: the gate may need a figure that was not measured
            comparison, _ = judge(comparison, Gate(stage.fail_if, "fail_if"))
            write(comparison)
        return comparison

    def write(comparison: Comparison) -> None:
        write_text_atomically(path, comparison.model_dump_json(by_alias=True, indent=2) + "\n")

    return StageResult(comparison=ranks.by_first(compared))  # it times networks, while other processes wait


def _skip_compare(space: Workspace, stage: CompareStage, path: Path) -> Comparison:
    return read_comparison(path)


RUNNERS: dict[str, Runner] = {
    "train": _checkpoint_runner("trained", train_stage),
    "prune": _checkpoint_runner("pruned", prune_stage),
    "finetune": _checkpoint_runner("finetuned", train_stage),
    "eval": Runner(_plan_eval, _run_eval, _skip_eval, {"require": _check_required, "report": _check_report}),
    "compare": Runner(_plan_compare, _run_compare, _skip_compare, {"fail_if": _check_gate}),
}
