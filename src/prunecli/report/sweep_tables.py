"""A sweep for people: cells with their figures, which of them nobody beats, and what is running."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunecli.report.numbers import fixed
from prunecli.report.pareto import Choice
from prunecli.report.scores import SCORES, Score
from prunecli.report.sweep import SweepRow, shown
from prunecli.report.table import Table

_LINE = 60
_COSTS = (
    ("params", "parameters", "{:,.0f}"),
    ("macs", "MACs", "{:,.0f}"),
    ("latency_ms", "latency", "{:.3f} ms"),
    ("energy_nj", "energy", "{:,.0f} nJ"),
    ("size_bytes", "file size", "{:,.0f}"),
)


def sweep_table(axes: Sequence[str], rows: Sequence[SweepRow], title: str = "") -> Table:
    """Every cell: its values, its figures, and its folder."""
    finished = [row.figures for row in rows if row.status == "finished"]
    scores = [score for score in SCORES if any(score.name in figures for figures in finished)][:1]
    costs = [cost for cost in _COSTS if any(cost[0] in figures for figures in finished)]
    drop = any(score.loss_name in figures for score in scores for figures in finished)
    columns = [
        *axes,
        *(score.label for score in scores),
        *(["lost"] if drop else []),
        *(label for _, label, _ in costs),
    ]
    lines = []
    for row in rows:
        cells = [shown(row.values.get(axis)) for axis in axes]
        for score in scores:
            cells.append(_scored(score, row.figures))
            cells += [fixed(row.figures.get(score.loss_name), score.digits)] if drop else []
        cells += [_cost(row.figures, name, form) for name, _, form in costs]
        lines.append((*cells, row.cell if row.status == "finished" else f"failed: {row.error}"))
    numeric = tuple(range(len(axes), len(columns)))
    return Table((*columns, "cell"), lines, title, numeric)


def front_table(
    axes: Sequence[str], groups: Iterable[Mapping[str, Any]], score: Score, fronts: Mapping[str, Sequence[str]]
) -> Table:
    """The groups on a Pareto front, with what they are ahead in.

    Args:
        axes: Names of the axes, but for the seed.
        groups: Each with its "label", "values", "cells" (how many) and "figures".
        score: What they are judged by.
        fronts: For each cost, labels of groups.
    """
    costs = [cost for cost in _COSTS if any(cost[0] in group["figures"] for group in groups)]
    lines = []
    for group in groups:
        on = [cost for cost, labels in fronts.items() if group["label"] in labels]
        if not on:
            continue
        place = "all" if len(on) == len(fronts) else ", ".join(on)
        cells = [shown(group["values"].get(axis)) for axis in axes]
        figures = [_scored(score, group["figures"]), *(_cost(group["figures"], name, form) for name, _, form in costs)]
        lines.append((*cells, str(group["cells"]), *figures, place))
    columns = (*axes, "cells", score.label, *(label for _, label, _ in costs), "on the Pareto front of")
    return Table(columns, lines, "Pareto front", tuple(range(len(axes), len(columns) - 1)))


def running_table(running: Iterable[tuple[str, float, str]]) -> Table:
    """What is running: its values, since how many seconds, and the last line that it has written."""
    rows = [(label, f"{seconds:.0f} s", line[:_LINE]) for label, seconds, line in running]
    return Table(("running", "for", "says"), rows, "cells")


def told(row: SweepRow, objective: Choice | None) -> str:
    """A cell that has ended, on one line."""
    if row.status == "failed":
        return f"{row.label}: failed: {row.error}"
    said = []
    score = next((score for score in SCORES if score.name in row.figures), None)
    if score is not None:
        said.append(f"{score.label} {_scored(score, row.figures)}")
    if objective is not None and objective.known_of(row.row()) and objective.figure != getattr(score, "name", ""):
        said.append(f"{objective.figure} {row.figures[objective.figure]:.6g}")
    seconds = f", {row.seconds:.1f} s" if row.seconds is not None else ""
    return f"{row.label}: {', '.join(said) or 'finished'}{seconds}"


def _scored(score: Score, figures: Mapping[str, float | None]) -> str:
    return score.text(figures.get(score.name))


def _cost(figures: Mapping[str, float | None], name: str, form: str) -> str:
    value = figures.get(name)
    return "-" if value is None else form.format(value)
