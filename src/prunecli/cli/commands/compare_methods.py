"""`prune compare --methods`: the options, and from them to a contest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.cli.options import option, options_of, overrides_from
from prunecli.cli.output import Output
from prunecli.cli.stages import (
    RESUME_OPTIONS,
    check_writable,
    reproducible_command,
    resume_command,
    resume_or_force,
    show_plan,
)
from prunecli.errors import RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.recipe.schema import FinetuneStage, PruneStage

if TYPE_CHECKING:
    from prunecli.report.contest import Contest
    from prunecli.studies.executors.base import Executor

_SEEDS, _RATIO = 5, 0.5
_Split = Literal["test", "validation"]
_STAGES: list[dict[str, Any]] = [{"stage": "prune", "params": {"round_to": 1}}, {"stage": "finetune"}]
CONTEST_OPTIONS = [
    option(
        "methods",
        str,
        "Instead of several networks: methods that prune one, with commas, to equally many parameters; l2 and random "
        "always take part. A method's own options follow it, as in activation:statistic=std.",
    ),
    option(
        "ratio",
        float,
        "With --methods: leave as many parameters as removing this share of every layer's channels does.",
        default=_RATIO,
        share=True,
    ),
    option("params", float, "With --methods, instead of a ratio: share of the parameters that is left.", share=True),
    option(
        "macs", float, "With --methods, instead of both: share of the multiply-accumulates that is left.", share=True
    ),
    option("seeds", int, "With --methods: how many seeds; they draw samples and training order.", default=_SEEDS),
    option("recover", int, "With --methods: training steps after pruning, with the same batches for all methods."),
    option("split", _Split, "With --methods: samples to judge on.", default="validation"),
    option(
        "images",
        int,
        "With --methods: at most so many of them. Some sequences of a text start without state; a whole text carries "
        "it on.",
    ),
    option("jobs", int, "With --methods: seeds that are compared at the same time, each by a process of its own."),
    option("dry_run", bool, "With --methods: print the plan and where each value comes from.", "--dry-run"),
    *options_of(PruneStage, ("stages", 0), only=("keep", "recalibrate", "compensate", "calibration_images")),
    *options_of(
        StructuralParams,
        ("stages", 0, "params"),
        only=("scope", "normalise", "round_to", "max_ratio", "min_width", "prune_stem", "only", "heads", "outputs"),
    ),
    *options_of(
        FinetuneStage,
        ("stages", 1),
        only=("lr", "optimizer", "momentum", "weight_decay", "schedule", "clip_grad"),
    ),
    *RESUME_OPTIONS,
]
"""Options that only make sense with --methods; all but that one."""


def refuse_without_methods(values: dict[str, Any]) -> None:
    """Refuses options of a contest where there is none.

    Raises:
        RecipeError: One was given.
    """
    given = [spec for spec in CONTEST_OPTIONS if values.get(spec.name) is not None]
    if given:
        flag = "--" + given[0].name.replace("_", "-")
        raise RecipeError(f"{flag} belongs to --methods; add it, for instance --methods fisher,taylor")


def compare_methods(
    output: Output, paths: Sequence[Path], specs: Sequence[Any], values: dict[str, Any]
) -> Contest | None:
    """Runs the contest, or finds it finished; None when it was a dry run.

    Raises:
        RecipeError: Options exclude each other, or what is named is no network.
    """
    for name in ("fail_if", "rounds", "channels_last", "compile", "runtime"):
        if values[name] not in (None, False):
            raise RecipeError(
                f"--{name.replace('_', '-')} is for several networks, and --methods prunes one: leave it out"
            )
    report = next((path for path in paths if path.suffix == ".json"), None)
    if report is not None:
        raise RecipeError(f"{report}: is a report, and --methods prunes networks: give a weights file or a reference")
    from prunecli.recipe.loader import Document
    from prunecli.recipe.origins import COMMAND_LINE
    from prunecli.recipe.resolve import resolve
    from prunecli.studies.contest import ContestSettings, finished_contest, run_contest

    count = len(paths) if len(paths) > 1 else _SEEDS
    settings = ContestSettings(
        methods=values["methods"],
        ratio=values["ratio"],
        params=values["params"],
        macs=values["macs"],
        seeds=count if values["seeds"] is None else values["seeds"],
        recover=values["recover"] or 0,
        split=values["split"] or "validation",
        images=values["images"],
    )
    settings.check(len(paths))
    document = Document({"stages": [dict(stage) for stage in _STAGES]}, COMMAND_LINE)
    plan = resolve(document, overrides_from(specs, values, 0))
    if values["dry_run"]:
        show_plan(output, plan)
        return None
    resume, force = resume_or_force(values)
    out = Path(values["out"] or f"{_stem(paths[0])}-methods.json")
    check_writable(out, force or resume)
    from prunecli.pipeline.resumption import is_unfinished
    from prunecli.pipeline.stages.compare_networks import recipe_of
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.entrants import as_written

    prune, finetune = as_written(plan), plan.recipe.stages[1]
    assert isinstance(finetune, FinetuneStage)
    command, again = reproducible_command(sys.argv[1:]), resume_command(sys.argv[1:])
    with _executor(values["jobs"]) as executor:  # before anything is computed, which its processes would inherit
        spaces = [Workspace(recipe_of(path, plan.recipe), output, command, again, resume, force) for path in paths]
        if resume and out.exists() and not is_unfinished(out):
            finished = finished_contest(spaces, settings, prune, finetune, out)
            output.note(f"{out}: finished already, nothing to resume")
            return finished
        contest = run_contest(spaces, settings, prune, finetune, out, executor)
    output.note(f"wrote {out}")
    return contest


@contextmanager
def _executor(jobs: int | None) -> Iterator[Executor | None]:
    """What runs several seeds at the same time; None: this process does.

    Raises:
        RecipeError: There are fewer cores than that takes.
    """
    if jobs is None:
        yield None
        return
    if jobs < 1:
        raise RecipeError(f"--jobs has to be at least 1 (got {jobs})")
    from prunecli.studies.executors.base import Resources
    from prunecli.studies.executors.local import LocalExecutor

    executor, gently = LocalExecutor(Resources(jobs)), True
    try:
        yield executor
        gently = False
    finally:
        executor.close(gently=gently)


def _stem(path: Path) -> str:
    return path.stem if path.suffix in WEIGHT_SUFFIXES else str(path).replace(":", "-").replace("/", "-")
