"""What the stage verbs share: options, dry runs, where results go, what is shown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli.options import OptionSpec, option, options_of, plan_for_stage, shared_options
from prunecli.cli.output import Output
from prunecli.errors import RecipeError
from prunecli.recipe.schema import Recipe

if TYPE_CHECKING:
    from prunecli.pipeline.stages.prune import PruneOutcome
    from prunecli.pipeline.stages.train import TrainOutcome
    from prunecli.pipeline.workspace import Workspace
    from prunecli.recipe.resolve import Plan

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A weights file, a reference such as timm:resnet50, or a recipe.")
]


RESUME_OPTIONS = [
    option("resume", bool, "Go on where an earlier run was stopped; begin if there is none.", "--resume"),
    *options_of(Recipe, (), only=("save_every", "keep_states")),
]


def stage_options(result: str, *, resumable: bool = False) -> list[OptionSpec]:
    """Options of every stage verb; `result` says what -o names, a `resumable` stage keeps states."""
    return [
        option("out", str, f"File to write the {result} to.", "-o", "--out"),
        option("force", bool, "Replace a file that exists.", "--force"),
        *(RESUME_OPTIONS if resumable else []),
        option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
        *shared_options(),
    ]


def prepare(
    output: Output, model: str, stage: dict[str, Any], specs: Sequence[OptionSpec], values: dict[str, Any]
) -> Workspace | None:
    """Resolves the plan and opens a workspace; None when it was a dry run."""
    plan = plan_for_stage(model, stage, specs, values)
    if values.get("dry_run"):
        show_plan(output, plan)
        return None
    resume, force = resume_or_force(values)
    if values.get("out") is not None:
        check_writable(Path(values["out"]), force or resume)
    from prunecli.pipeline.workspace import Workspace

    command = reproducible_command(sys.argv[1:])
    return Workspace(plan.recipe, output, command, resume_command(sys.argv[1:]), resume, force)


def show_plan(output: Output, plan: Plan) -> None:
    """Every value and its origin."""
    from prunecli.report.tables import Table

    rows = plan.rows()
    output.document([{"key": key, "value": value, "origin": origin} for key, value, origin in rows])
    output.table(Table(("key", "value", "from"), [(key, _shown(value), origin) for key, value, origin in rows]))


def check_writable(path: Path, force: bool) -> None:
    """Refuses to replace a file unasked, before any work is done.

    Raises:
        RecipeError: The file exists, or the path is a directory.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a directory; -o takes the name of a file")
    if path.exists() and not force:
        raise RecipeError(f"{path}: exists; add --force to replace it, or choose another name")
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RecipeError(f"{path}: {parent} is not a directory; choose another name with -o")


def checkpoint_path(space: Workspace, values: dict[str, Any], suffix: str) -> Path:
    """What -o says, else the model's name and what was done to it, in this folder.

    Raises:
        RecipeError: The name does not end in .safetensors, or the file exists.
    """
    if values["out"] is not None:
        path = Path(values["out"])
        if path.suffix != ".safetensors":
            raise RecipeError(f"-o {path}: checkpoints are safetensors; name it {path.with_suffix('.safetensors')}")
        return path
    weights = space.recipe.model.weights
    stem = Path(weights).stem if weights else (space.recipe.model.ref or "model").replace(":", "-")
    path = Path(f"{stem}-{suffix}.safetensors")
    check_writable(path, space.force or space.resume)
    return path


def nothing_left(output: Output, space: Workspace, path: Path) -> bool:
    """Whether --resume finds the stage finished: its file is there and no saved state."""
    from prunecli.pipeline.resumption import is_unfinished

    if not space.resume or not path.exists() or is_unfinished(path):
        return False
    output.note(f"{path}: finished already, nothing to go on with")
    output.document({"checkpoint": str(path), "finished": True})
    return True


def resume_or_force(values: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether to go on with an earlier run, and whether to replace what is there.

    Raises:
        RecipeError: Both are asked for.
    """
    resume, force = bool(values.get("resume")), bool(values.get("force"))
    if resume and force:
        raise RecipeError("--resume goes on with a run and --force begins it anew; give one of them")
    return resume, force


def resume_command(argv: Sequence[str]) -> str:
    """The command line that goes on with this one."""
    words = [word for word in argv if word not in ("--resume", "--force")]
    return shlex.join(["prune", *words, "--resume"])


_LEFT_OUT = ("--force", "--resume", "--json", "-q", "--quiet")
_LEFT_OUT_WITH_VALUE = ("-o", "--out", "--output", "--save-every", "--keep-states", "--extract-attention", "--overlay")


def reproducible_command(argv: Sequence[str]) -> str:
    """The command line without the options that only say where output goes and how the run is kept safe."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in _LEFT_OUT_WITH_VALUE:
            skip = True
        elif word not in _LEFT_OUT and not word.startswith(("-o", *(f"{flag}=" for flag in _LEFT_OUT_WITH_VALUE[1:]))):
            kept.append(word)
    return shlex.join(["prune", *kept])


def show_training(output: Output, outcome: TrainOutcome) -> None:
    """What training came to."""
    from dataclasses import asdict

    from prunecli.report.tables import Table, fixed

    chosen = outcome.chosen
    validation = chosen.validation
    label = validation.score_label if validation else "score"
    output.document(
        {
            "checkpoint": str(outcome.path),
            "metrics_log": str(outcome.metrics_path),
            "chosen_epoch": outcome.result.chosen,
            "epochs": [asdict(epoch) for epoch in outcome.result.epochs],
        }
    )
    output.table(
        Table(
            ("figure", "value"),
            [
                ("epoch kept", f"{chosen.epoch} of {len(outcome.result.epochs)}"),
                ("training loss", fixed(chosen.loss, 4)),
                (f"validation {label}", fixed(validation.score if validation else None, unit=" %")),
                ("validation loss", fixed(validation.loss if validation else None, 4)),
                ("checkpoint", str(outcome.path)),
                ("metrics", str(outcome.metrics_path)),
            ],
        )
    )


def show_pruning(output: Output, outcome: PruneOutcome) -> None:
    """What pruning removed, what it left and why."""
    from prunecli.report.energy_tables import change_rows
    from prunecli.report.tables import Table, count, fixed, interval, macs

    report, timing = outcome.report, outcome.timing
    ratio, bounds = timing.ratios[1], timing.ratio_intervals[1]
    output.document(
        {
            "checkpoint": str(outcome.path),
            **report.to_dict(),
            "latency_ms_before": timing.timings[0].median,
            "latency_ms_after": timing.timings[1].median,
            "latency_ratio": ratio,
            "latency_ratio_interval": list(bounds),
            "energy": [figures.model_dump(exclude_none=True) for figures in outcome.energy] if outcome.energy else None,
        }
    )
    before, after = report.params_before, report.params_after
    macs_before, macs_after = report.macs_before.total, report.macs_after.total
    rows: list[tuple[str, ...]] = [
        ("channels removed", fixed(100 * report.requested, 1, " % asked"), fixed(100 * report.achieved, 1, " %"), ""),
    ]
    if report.target is not None:
        reached = fixed(report.target.achieved, 3)
        rows = [
            ("channels removed", "", fixed(100 * report.achieved, 1, " %"), ""),
            (f"target: {report.target.name}", f"x{report.target.requested:.3f} asked", f"x{reached}", ""),
        ]
    rows += [
        ("allocation", "", report.scope if report.steps == 1 else f"{report.scope}, {report.steps} steps", ""),
        ("parameters", count(before), count(after), f"x{after / before:.3f}"),
        (
            "MACs",
            macs(macs_before, report.macs_before.uncounted),
            macs(macs_after, report.macs_after.uncounted),
            f"x{macs_after / max(macs_before, 1):.3f}",
        ),
        (
            "latency",
            f"{timing.timings[0].median:.2f} ms",
            f"{timing.timings[1].median:.2f} ms",
            f"x{ratio:.3f} {interval(*bounds, digits=3)}",
        ),
        *(change_rows(*outcome.energy) if outcome.energy else []),
        ("difference to masked original", "", f"{report.verify_error:.1e}", "verified"),
        ("layers compensated", "", str(report.compensated), ""),
        ("normalisations recalibrated", "", str(report.recalibrated), ""),
    ]
    uncounted = sorted({*report.macs_before.uncounted, *report.macs_after.uncounted})
    if uncounted:
        rows.append(("not counted in MACs", "", ", ".join(uncounted), ""))
    output.table(Table(("figure", "before", "after", "ratio"), rows))
    show_left_alone(output, {entry.name: entry.reason for entry in report.untouched})
    output.note(f"saved {outcome.path}")


def show_left_alone(output: Output, reasons: Mapping[str, str]) -> None:
    """Layers by the reason why they kept their width, or more of it than was asked."""
    if not reasons:
        return
    from prunecli.report.tables import Table

    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    rows = [(str(len(names)), reason, ", ".join(names)) for reason, names in layers.items()]
    output.table(Table(("layers left alone", "why", "which"), rows, numeric=(0,)))


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
