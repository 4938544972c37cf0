"""`prune sweep`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.next_steps import after_sweep
from prunecli.cli.options import option, overrides_from, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import reproducible_command
from prunecli.errors import RecipeError, ResourceError
from prunecli.report.numbers import number_of

if TYPE_CHECKING:
    from prunecli.studies.sweeping.outcome import SweepOutcome
    from prunecli.studies.sweeping.run import Planned

_EXECUTORS = "local, ray or slurm"
OPTIONS = [
    option("out", str, "Folder of the sweep, continued if it is there; default: runs/NAME.", "-o", "--out"),
    option("executor", str, f"What runs the cells: {_EXECUTORS}.", default="local"),
    option(
        "jobs",
        int,
        "Cells at the same time; default: one for each GPU of this machine, else one; on a cluster, all that fit.",
    ),
    option("cpus", int, "Cores of each; default: this machine's, shared out; on a cluster one."),
    option("gpus", float, "GPUs of each; on Ray a fraction, too. Default: those of this machine in turn; else none."),
    option("address", str, "Of a Ray cluster, or auto; default: one that is started here for the time."),
    option(
        "executor_option",
        list[str],
        "More for the executor, KEY=VALUE, may be given again: with slurm, partition=gpu or timeout_min=600.",
    ),
    option("retry_failed", bool, "Run cells again that have failed.", "--retry-failed"),
    option("objective", str, "What is looked for, instead of what the file says: 'max top1'."),
    option("dry_run", bool, "Print the cells, and which of them are finished; run nothing.", "--dry-run"),
    option(
        "set_values", list[str], "Set a recipe value in all cells: KEY=VALUE, for instance data.root=/data.", "--set"
    ),
]
_SweepArgument = Annotated[Path, Argument("SWEEP", "A YAML file with a recipe and axes, or the name of a shipped one.")]


def run(output: Output, sweep: _SweepArgument, values: dict[str, Any]) -> None:
    """Runs the cells of a sweep that are not finished, and shows what all of them come to."""
    from prunecli.own_code import allowed_modules
    from prunecli.studies.executors.base import Resources
    from prunecli.studies.executors.index import EXECUTORS
    from prunecli.studies.sweeping.folder import Place
    from prunecli.studies.sweeping.run import planned, run_sweep

    executor = values["executor"] or "local"
    EXECUTORS.require(executor)
    resources = Resources(
        values["jobs"], values["cpus"], values["gpus"], values["address"], _options(values["executor_option"])
    )
    for name, least in (("jobs", 1), ("cpus", 1), ("gpus", 0)):
        given = getattr(resources, name)
        if given is not None and given < least:
            raise RecipeError(f"--{name} has to be at least {least} (got {given:g})")
    out = Path(values["out"]) if values["out"] is not None else Path("runs") / sweep.stem
    command = reproducible_command(sys.argv[1:])
    plan = planned(sweep, out, overrides_from(OPTIONS, values, 0), values["objective"], command)
    if values["dry_run"]:
        _show_cells(output, plan)
        return
    place = Place(os.getcwd(), tuple(allowed_modules()))
    outcome = run_sweep(plan, executor, resources, place, output, retry_failed=bool(values["retry_failed"]))
    output.document(outcome.document())
    _show(output, plan, outcome)
    after_sweep(output, outcome.folder, [row.cell for row in outcome.rows if row.status == "finished"])
    if outcome.failed:
        raise ResourceError(_complaint(outcome, len(outcome.rows)))


def _options(texts: list[str] | None) -> dict[str, str]:
    options = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RecipeError(f"--executor-option {text}: write it as KEY=VALUE, for instance partition=gpu")
        options[name] = value
    return options


def _show_cells(output: Output, plan: Planned) -> None:
    from prunecli.report.sweep import shown
    from prunecli.report.table import Table

    cells = plan.states()
    finished = sum(state == "finished" for _, state in cells)
    output.document(
        {
            "folder": str(plan.folder.path),
            "axes": {setting.axis.name: ".".join(map(str, setting.path)) for setting in plan.settings},
            "search": plan.sweep.search.kind,
            "count": plan.proposer.total,
            "finished": finished,
            "shared": plan.shared_count(),
            "cells": [{"cell": cell.name, "values": dict(cell.values), "state": state} for cell, state in cells],
        }
    )
    rows = [(setting.axis.name, ".".join(map(str, setting.path)), plan.axis_text(setting)) for setting in plan.settings]
    output.table(Table(("axis", "changes", "values"), rows))
    names = [setting.axis.name for setting in plan.settings]
    lines = [(*(shown(cell.values[name]) for name in names), state, cell.name) for cell, state in cells]
    output.table(Table((*names, "state", "cell"), lines))
    later = plan.proposer.total - len(cells)
    more = f", {later} to be proposed while it runs" if later else ""
    output.note(
        f"{number_of(plan.proposer.total, 'cell')} ({plan.sweep.search.kind}): {finished} finished{more}"
        + _beginnings(plan.shared_count())
    )


def _beginnings(count: int) -> str:
    """How often what cells have in common is run."""
    if not count:
        return ""
    are, them = ("is", "it") if count == 1 else ("are", "them")
    return f"; {number_of(count, 'beginning')} {are} run once for all that share {them}"


def _show(output: Output, plan: Planned, outcome: SweepOutcome) -> None:
    from prunecli.report.sweep_tables import front_table, sweep_table

    axes = [setting.axis.name for setting in plan.settings]
    output.table(sweep_table(axes, outcome.rows))
    if outcome.fronts and outcome.score is not None:
        seeds = {setting.axis.name for setting in plan.settings if setting.path == ("seed",)}
        groups = [
            {"label": group.label, "values": group.values, "cells": len(group.cells), "figures": group.figures}
            for group in outcome.groups
        ]
        output.table(front_table([axis for axis in axes if axis not in seeds], groups, outcome.score, outcome.fronts))
    if outcome.best is not None and plan.objective is not None:
        value = outcome.best.figures[plan.objective.figure]
        over = f", mean of {len(outcome.best.cells)} seeds" if len(outcome.best.cells) > 1 else ""
        output.text(f"\nbest: {outcome.best.label} ({plan.objective.figure} {value:.4g}{over}; {plan.objective.text})")
        for cell in outcome.best.cells:
            output.text(f"reproduce: prune run {outcome.folder / 'cells' / cell / 'plan.yaml'}")
    for note in outcome.notes:
        output.note(f"note: {note}")


def _complaint(outcome: SweepOutcome, total: int) -> str:
    reasons = "; ".join(f"{row.label}: {row.error}" for row in outcome.failed[:_NAMED])
    more = f"; and {len(outcome.failed) - _NAMED} more" if len(outcome.failed) > _NAMED else ""
    return (
        f"{len(outcome.failed)} of {number_of(total, 'cell')} failed ({reasons}{more}); --retry-failed runs them again"
    )


_NAMED = 3


def command() -> Command:
    """The command."""
    summary = (
        "Run a recipe many times with other methods, ratios, seeds or models: a grid, random or adaptive search. Cells "
        "that are finished are never run again; the same command continues."
    )
    return Command("sweep", with_output(run, OPTIONS), summary)
