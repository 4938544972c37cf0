"""A sweep from its file to what it comes to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.errors import RecipeError
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.sweep_cells import read_failure
from prunecli.recipe.axes import Setting, settings_of
from prunecli.recipe.resolve import Override
from prunecli.recipe.sweep_file import Range, Sweep, load_sweep
from prunecli.report.pareto import Choice
from prunecli.report.sweep import shown
from prunecli.studies.executors.base import Resources
from prunecli.studies.executors.index import EXECUTORS
from prunecli.studies.sweeping.cells import Cell, CellMaker
from prunecli.studies.sweeping.driver import Driver
from prunecli.studies.sweeping.folder import Place, SweepFolder
from prunecli.studies.sweeping.outcome import SweepOutcome, check_evaluations, outcome_of
from prunecli.studies.sweeping.search import Proposer, drawn, grid

_SHOWN = 8


@dataclass(frozen=True)
class Planned:
    """A sweep whose file, axes and cells are checked.

    Attributes:
        sweep: The file.
        settings: Its axes with the options that they change.
        folder: Where it goes.
        proposer: Which cells there are.
        objective: What is looked for.
        command: How to run it again.
    """

    sweep: Sweep
    settings: tuple[Setting, ...]
    folder: SweepFolder
    proposer: Proposer
    objective: Choice | None
    command: str

    def states(self) -> list[tuple[Cell, str]]:
        """The cells that are known, each finished, failed, started or new."""
        return [(cell, self._state(cell)) for cell in self.proposer.proposed()]

    def shared_count(self) -> int:
        """How many beginnings the known cells share."""
        return len({shared.name for cell in self.proposer.proposed() for shared in cell.shared})

    @staticmethod
    def axis_text(setting: Setting) -> str:
        """The values of an axis on one line."""
        values = setting.axis.values
        if isinstance(values, Range):
            return f"{shown(values.low)} to {shown(values.high)}" + (f" in {values.steps}" if values.steps else "")
        more = f", and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        return ", ".join(map(shown, values[:_SHOWN])) + more

    def _state(self, cell: Cell) -> str:
        folder = self.folder.cell(cell.name)
        if self.folder.is_done(cell):
            return "finished"
        if read_failure(folder) is not None:
            return "failed"
        return "started" if folder.exists() else "new"


def planned(path: Path, out: Path, overrides: Sequence[Override], objective: str | None, command: str) -> Planned:
    """Reads a sweep and makes its cells.

    Args:
        path: The sweep file, or the name of a shipped one.
        out: The folder of the sweep.
        overrides: Values of --set.
        objective: What is looked for, instead of what the file says.
        command: How to run it again.

    Raises:
        PruneError: Something is wrong with it; the message has file, line and column.
    """
    sweep = load_sweep(path)
    folder = SweepFolder(out, command)
    folder.check()
    settings = settings_of(sweep, overrides)
    text, option = (objective, "--objective") if objective is not None else (sweep.objective, "objective")
    if option == "objective" and text is not None:
        option = f"{sweep.objective_origin}: objective"
    choice = Choice(text, option) if text is not None else None
    make = CellMaker(sweep, settings, overrides)
    proposer = _proposer(sweep, settings, make, choice, folder)
    first = next(proposer.proposed(), None)
    if first is not None:
        _check_evaluations(first, choice, sweep)
    return Planned(sweep, settings, folder, proposer, choice, command)


def _check_evaluations(cell: Cell, choice: Choice | None, sweep: Sweep) -> None:
    try:
        check_evaluations(cell.plan, choice)
    except RecipeError as error:
        raise RecipeError(f"{sweep.recipe}: {error}") from error


def _proposer(
    sweep: Sweep, settings: Sequence[Setting], make: CellMaker, choice: Choice | None, folder: SweepFolder
) -> Proposer:
    if sweep.search.kind == "grid":
        return grid(sweep.axes, make)
    if sweep.search.kind == "random":
        return drawn(sweep.axes, sweep.search, make)
    from prunecli.studies.sweeping.adaptive import Adaptive

    assert choice is not None
    return Adaptive(settings, sweep.search, make, choice, folder.path)


def run_sweep(
    plan: Planned, executor: str, resources: Resources, place: Place, sink: Sink, *, retry_failed: bool = False
) -> SweepOutcome:
    """Runs the cells that are not finished.

    Args:
        plan: The sweep.
        executor: What runs them, by name.
        resources: What that may use.
        place: Where jobs run.
        sink: Receives notes and progress.
        retry_failed: Whether cells that have failed are run again.

    Raises:
        RecipeError: The executor cannot run as asked, or somebody else runs the sweep.
        Interrupted: A signal ended it; everything that had finished stays.
    """
    make = EXECUTORS.load(executor)
    driver = Driver(plan.folder, plan.proposer, place, sink, retry_failed=retry_failed, objective=plan.objective)
    head = {
        "command": plan.command,
        "file": str(plan.sweep.path),
        "recipe": str(plan.sweep.recipe),
        "description": plan.sweep.description,
        "axes": {setting.axis.name: ".".join(map(str, setting.path)) for setting in plan.settings},
        "search": plan.sweep.search.kind,
        "objective": plan.objective.text if plan.objective is not None else None,
    }
    resources = dataclasses.replace(resources, workspace=str(plan.folder.path.resolve()))
    run = driver.run(lambda: make(resources), head, plan.command)
    return outcome_of(plan.folder.path, run.rows, len(run.ran), plan.settings, plan.objective)
