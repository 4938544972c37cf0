"""Pictures of a page: widths, where things went, scores, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prunecli.report.plots import SERIES, SOFT, figure_of, rendered

if TYPE_CHECKING:
    from matplotlib.artist import Artist

_MOST_PANELS = 24
_COLUMNS = 4


class Width(NamedTuple):
    """Channels of one group of layers, before and after."""

    name: str
    before: int
    after: int


class Part(NamedTuple):
    """One part of a network and what it needs, in the dense network and in the pruned one."""

    name: str
    before: float
    after: float


class Curve(NamedTuple):
    """One training: figures by epoch."""

    name: str
    epochs: Sequence[int]
    figures: Mapping[str, Sequence[float | None]]


def widths_plot(widths: Sequence[Width], label: str = "channels") -> bytes:
    """Draws a bar for each group, the first one on top: what it had before, and what is left inside.

    Args:
        widths: In the order of the network.
        label: What is counted.
    """
    figure = figure_of(8.5, 1.0 + 0.22 * len(widths))
    axes = figure.add_subplot()
    rows = range(len(widths))
    axes.barh(rows, [width.before for width in widths], height=0.75, color=SOFT, label="before")
    axes.barh(rows, [width.after for width in widths], height=0.4, color=SERIES[0], label="after")
    axes.set_yticks(rows, [width.name for width in widths], fontsize=7)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return rendered(figure, "svg")


def waterfall_plot(parts: Sequence[Part], label: str, unit: str, scale: float) -> bytes:
    """Draws from the total before, down by what each part saves (up by what it costs more), to the total after.

    Args:
        parts: In the order of the network.
        label: What is added up.
        unit: Of the scaled numbers.
        scale: What one unit is.
    """
    names = ["before", *(part.name for part in parts), "after"]
    figure = figure_of(8.5, 1.0 + 0.26 * len(names))
    axes = figure.add_subplot()
    level = total = sum(part.before for part in parts) / scale
    axes.barh(0, total, height=0.7, color=SERIES[5])
    for row, part in enumerate(parts, start=1):
        change = (part.after - part.before) / scale
        axes.barh(row, change, left=level, height=0.7, color=SERIES[0] if change <= 0 else SERIES[1])
        axes.plot([level, level], [row - 1, row], color=SERIES[5], linewidth=0.6)
        level += change
    axes.barh(len(names) - 1, level, height=0.7, color=SERIES[5])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"{label} ({unit})" if unit else label)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return rendered(figure, "svg")


def scores_plot(histogram: Mapping[str, Any]) -> bytes:
    """Draws a histogram for each group: units by their score, those that stay and those that went.

    Args:
        histogram: As `Allocation.score_histogram` makes it.
    """
    edges: list[float] = histogram["edges"]
    groups: Mapping[str, Mapping[str, list[int]]] = histogram["groups"]
    shown = {"all groups": pooled(groups), **dict(list(groups.items())[: _MOST_PANELS - 1])}
    lines = -(-len(shown) // _COLUMNS)
    figure = figure_of(2.5 * min(len(shown), _COLUMNS), 0.5 + 1.6 * lines)
    width = edges[1] - edges[0]
    for number, (name, counts) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(lines, min(len(shown), _COLUMNS), number)
        starts = edges[:-1]
        axes.bar(starts, counts["kept"], width, align="edge", color=SERIES[0], label="kept")
        axes.bar(
            starts, counts["removed"], width, align="edge", bottom=counts["kept"], color=SERIES[1], label="removed"
        )
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return rendered(figure, "svg")


def pooled(groups: Mapping[str, Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """Numbers of kept and removed units of all groups together."""
    return {
        kind: [sum(counts) for counts in zip(*(group[kind] for group in groups.values()), strict=True)]
        for kind in ("kept", "removed")
    }


def training_plot(curves: Sequence[Curve]) -> bytes:
    """Draws a panel for each kind of figure, with a line for each training.

    Args:
        curves: One or more trainings.
    """
    kinds = figures_in(curves)
    lines = -(-len(kinds) // 2)
    figure = figure_of(8.5, 0.5 + 2.6 * lines)
    for number, kind in enumerate(kinds, start=1):
        axes = figure.add_subplot(lines, min(len(kinds), 2), number)
        for index, curve in enumerate(curves):
            points = [(e, v) for e, v in zip(curve.epochs, curve.figures.get(kind, ()), strict=False) if v is not None]
            if points:
                colour, marker = SERIES[index % len(SERIES)], "os^vD"[index % 5]
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, marker, ls="-", ms=3, lw=1.2, color=colour, label=curve.name)
        axes.set_title(kind, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return rendered(figure, "svg")


def figures_in(curves: Sequence[Curve]) -> list[str]:
    """Kinds of figures that any of the trainings has."""
    return list(dict.fromkeys(kind for curve in curves for kind in curve.figures))
