"""Pareto fronts for people: a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.errors import RecipeError
from prunecli.report.comparison import Comparison
from prunecli.report.pareto import COSTS, Figures, beaten_by, figures_of, number, score_of
from prunecli.report.plots import SERIES, figure_of, rendered
from prunecli.report.scores import Score
from prunecli.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_MANY = 3
"""Candidates from which on there is a table."""
_NAMED = 6
"""Points up to which each has its name beside it; of more, those on the front."""
_COLUMNS = 3


def check_plot(path: Path) -> None:
    """Checks what a picture is to be called.

    Raises:
        RecipeError: It has another ending.
    """
    if path.suffix not in FORMATS:
        raise RecipeError(f"--plot {path}: name it .png, .svg or .pdf")


def pareto_tables(comparison: Comparison) -> list[Table]:
    """Networks with their score and costs, and which front they are on; no table of few, which compare themselves."""
    score, fronts = score_of(comparison), comparison.front
    if score is None or not fronts or len(comparison.candidates) < _MANY:
        return []
    costs, beaten = [cost for cost in COSTS if cost.name in fronts], beaten_by(comparison, score)
    rows = []
    for row in figures_of(comparison):
        name = str(row["name"])
        on = [cost.label for cost in costs if name in fronts[cost.name]]
        if comparison.judged_alike is not None and name not in comparison.judged_alike:
            place = "judged on something else"
        else:
            place = "all" if len(on) == len(costs) else ", ".join(on) or "none"
        cells = ["-" if row[cost.figure] is None else f"x{number(row, cost.figure):.3f}" for cost in costs]
        merit = None if row[score.name] is None else number(row, score.name)
        rows.append((name, score.text(merit), *cells, place, beaten.get(name, "")))
    columns = ("network", score.label, *(cost.label for cost in costs), "on the Pareto front of", "beaten by")
    return [Table(columns, rows, numeric=tuple(range(1, len(costs) + 2)))]


def pareto_plot(comparison: Comparison, form: str = "png") -> bytes:
    """Renders `pareto_figure` as an image.

    Args:
        comparison: With fronts.
        form: "png", "svg" or "pdf".

    Raises:
        RecipeError: There are no fronts to draw.
    """
    return rendered(pareto_figure(comparison), form)


def pareto_figure(comparison: Comparison, columns: int = _COLUMNS) -> Figure:
    """Draws the score against each cost, a panel each: networks on the front are filled and joined by a line.

    Args:
        comparison: With fronts.
        columns: Panels side by side.

    Raises:
        RecipeError: There are no fronts to draw.
    """
    score, fronts = score_of(comparison), comparison.front
    if score is None or not fronts:
        raise RecipeError(
            "--plot needs at least three networks with a score measured on the same data; evaluate them with --data"
        )
    costs = [cost for cost in COSTS if cost.name in fronts]
    columns = min(len(costs), columns)
    lines = -(-len(costs) // columns)
    figure = figure_of(4.2 * columns, 3.6 * lines)
    alike = comparison.judged_alike
    networks = [row for row in figures_of(comparison) if alike is None or row["name"] in alike]
    for place, cost in enumerate(costs, start=1):
        axes = figure.add_subplot(lines, columns, place)
        known = [row for row in networks if row[cost.figure] is not None and row[score.name] is not None]
        _draw(axes, known, fronts[cost.name], cost.figure, score)
        axes.set_xlabel(f"{cost.label} (share of {comparison.baseline})", fontsize=9)
    return figure


def _draw(axes: Axes, networks: list[Figures], front: tuple[str, ...], figure: str, score: Score) -> None:
    points = {str(row["name"]): (number(row, figure), number(row, score.name)) for row in networks}
    on = [points[name] for name in front if name in points]
    axes.step(*zip(*on, strict=True), where="post", color=SERIES[0], linewidth=1.2, alpha=0.6)
    most = max(x for x, _ in points.values())
    for name, (x, y) in points.items():
        best, rightmost = name in front, x > 0.9 * most
        axes.plot(x, y, "o", markersize=6, color=SERIES[0], markerfacecolor=SERIES[0] if best else "none")
        if best or len(points) <= _NAMED:
            offset, side = ((-6, 5), "right") if rightmost else ((5, -10), "left")
            axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", fontsize=7, ha=side)
    axes.set_ylabel(f"{score.label}{' (%)' if score.unit else ''}", fontsize=9)
    axes.margins(x=0.2, y=0.15)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if score.less_is_better:
        axes.invert_yaxis()
