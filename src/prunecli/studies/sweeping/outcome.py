"""What a sweep comes to: rows of cells, the Pareto front, and the best by the objective, over seeds together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.errors import RecipeError
from prunecli.recipe.axes import Setting
from prunecli.recipe.resolve import Plan
from prunecli.recipe.schema import EvalStage, PruneStage
from prunecli.report.pareto import Choice, pareto_front
from prunecli.report.scores import SCORES, Score
from prunecli.report.sweep import SweepRow, label_of

COSTS: Mapping[str, str] = {
    "macs": "macs",
    "latency": "latency_ms",
    "energy": "energy_nj",
    "size": "size_bytes",
    "params": "params",
}
"""What a network should need little of, and the figure: of networks with different beginnings, no ratio compares."""
_ENOUGH = 3


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone.

    Attributes:
        values: What the other axes have.
        cells: Names of the cells.
        figures: Means over them.
        complete: Whether all of them are finished.
    """

    values: Mapping[str, Any]
    cells: tuple[str, ...]
    figures: Mapping[str, float | None]
    complete: bool

    @property
    def label(self) -> str:
        """Its values on one line."""
        return label_of(self.values) or "all cells"


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep has come to.

    Attributes:
        folder: Where it is.
        rows: All cells that have ended, in order.
        ran: How many of them this call ran.
        groups: The finished ones, those of different seeds together.
        score: What they are judged by; None without any.
        fronts: For each cost, the groups that no other one beats, by label.
        best: The best group by the objective.
        notes: What could not be considered, and why.
    """

    folder: Path
    rows: tuple[SweepRow, ...]
    ran: int
    groups: tuple[Group, ...]
    score: Score | None
    fronts: Mapping[str, tuple[str, ...]]
    best: Group | None
    notes: tuple[str, ...]

    @property
    def failed(self) -> tuple[SweepRow, ...]:
        """Cells without figures."""
        return tuple(row for row in self.rows if row.status == "failed")

    def document(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "folder": str(self.folder),
            "cells": [row.model_dump(mode="json") for row in self.rows],
            "finished": len(self.rows) - len(self.failed),
            "failed": len(self.failed),
            "ran": self.ran,
            "front": {cost: list(names) for cost, names in self.fronts.items()},
            "best": None
            if self.best is None
            else {"values": dict(self.best.values), "cells": list(self.best.cells), "figures": dict(self.best.figures)},
            "notes": list(self.notes),
        }


def check_evaluations(plan: Plan, objective: Choice | None) -> None:
    """Checks that cells will have the figures that are looked for.

    Raises:
        RecipeError: No network is evaluated after it was pruned, or the objective compares with one that is not.
    """
    kinds = [(index, stage) for index, stage in enumerate(plan.recipe.stages)]
    evaluated = [index for index, stage in kinds if isinstance(stage, EvalStage)]
    pruned = [index for index, stage in kinds if isinstance(stage, PruneStage)]
    if not evaluated or (pruned and evaluated[-1] < pruned[-1]):
        raise RecipeError("the recipe of a sweep needs an eval stage at its end: what it writes is the cells' figures")
    dense = not pruned or evaluated[0] < pruned[0]
    if objective is not None and not (dense and len(evaluated) > 1):
        compared = [name for name in objective.needed if name.endswith(("_drop", "_rise", "_ratio", "speedup"))]
        if compared:
            raise RecipeError(
                f"{compared[0]} compares with the network before it was pruned, which the recipe does not evaluate: "
                "add an eval stage before the prune stage"
            )


def outcome_of(
    folder: Path, rows: Sequence[SweepRow], ran: int, settings: Sequence[Setting], objective: Choice | None
) -> SweepOutcome:
    """Puts together what cells have come to."""
    groups = groups_of(rows, next((setting.axis.name for setting in settings if setting.path == ("seed",)), None))
    complete = [group for group in groups if group.complete]
    notes = [
        f"{group.label}: not all of its seeds are finished, so it is left out" for group in groups if not group.complete
    ]
    score = _score(complete)
    best = None
    if objective is not None and complete:
        known = [group for group in complete if objective.known_of(group.figures)]
        if not known:
            raise RecipeError(f"objective {objective.text!r}: no cell has {' and '.join(objective.needed)}")
        meeting = [group for group in known if objective.met_by(group.figures)]
        best = min(meeting, key=lambda group: objective.cost_of(group.figures), default=None)
        if best is None:
            notes.append(f"no cell meets the condition of the objective, {objective.text}")
    return SweepOutcome(folder, tuple(rows), ran, groups, score, _fronts(complete, score), best, tuple(notes))


def groups_of(rows: Sequence[SweepRow], seeds: str | None) -> tuple[Group, ...]:
    """Cells of different seeds together, each with the means of what all of them have.

    Args:
        rows: Cells.
        seeds: The axis of seeds, if there is one.
    """
    together: dict[str, list[SweepRow]] = {}
    for row in rows:
        values = {name: value for name, value in row.values.items() if name != seeds}
        together.setdefault(json.dumps(values, sort_keys=True), []).append(row)
    groups = []
    for own in together.values():
        finished = [row for row in own if row.status == "finished"]
        if not finished:
            continue
        names = [name for name in finished[0].figures if all(row.figures.get(name) is not None for row in finished)]
        means = {name: statistics.fmean(float(row.figures[name] or 0.0) for row in finished) for name in names}
        values = {name: value for name, value in finished[0].values.items() if name != seeds}
        cells = tuple(row.cell for row in finished)
        groups.append(Group(values, cells, means, len(finished) == len(own)))
    return tuple(groups)


def _score(groups: Sequence[Group]) -> Score | None:
    """The score that most cells have; None without any."""
    counts = {score: sum(score.name in group.figures for group in groups) for score in SCORES}
    best = max(counts, key=lambda score: counts[score])
    return best if counts[best] else None


def _fronts(groups: Sequence[Group], score: Score | None) -> dict[str, tuple[str, ...]]:
    fronts: dict[str, tuple[str, ...]] = {}
    for cost, figure in COSTS.items() if score is not None else ():
        assert score is not None
        points = {
            group.label: (float(group.figures[figure] or 0.0), score.merit(float(group.figures[score.name] or 0.0)))
            for group in groups
            if group.figures.get(figure) is not None and group.figures.get(score.name) is not None
        }
        if len(points) >= _ENOUGH:
            fronts[cost] = pareto_front(points)
    return fronts
