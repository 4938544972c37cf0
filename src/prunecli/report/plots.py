"""Plots. matplotlib is only imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunecli.report.schema import NeuronRates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("#08519c", "#cb181d", "#1b7837", "#6a3d9a", "#9c5700", "#4d4d4d")
"""Colours of lines and points; each has a contrast of over 4.5 with white."""
SOFT = "#9ecae1"
"""Colour of bars behind lines."""
_LEGEND_ROWS = 24
_LARGEST_LEGEND = 72


def sensitivity_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    max_drop: float,
    title: str,
    form: str = "png",
    label: str = "top-1 lost (points)",
) -> bytes:
    """Plots accuracy lost against the share of channels removed, with a line for each layer, early layers dark.

    Args:
        curves: For each layer, pairs of (share removed, percentage points lost) in increasing order of the share.
        max_drop: Drawn as a dashed line.
        title: Title of the plot.
        form: "png", "svg" or "pdf".
        label: Label of the axis of what is lost.
    """
    import matplotlib

    columns = -(-min(len(curves), _LARGEST_LEGEND) // _LEGEND_ROWS)
    figure = figure_of(7.0 + 2.2 * columns, 5.0)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"]
    markers = "os^vD"
    for index, (name, points) in enumerate(curves.items()):
        shares, drops = [0.0, *(100 * x for x, _ in points)], [0.0, *(y for _, y in points)]
        colour = colours(0.95 * index / max(len(curves) - 1, 1))
        axes.plot(shares, drops, marker=markers[index % len(markers)], markersize=4, color=colour, label=name)
    axes.axhline(max_drop, color="black", linestyle="--", linewidth=1, label=f"limit {max_drop:g}")
    axes.set_xlabel("channels of the layer removed (%)")
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if len(curves) <= _LARGEST_LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, ncols=max(columns, 1), frameon=False)
    return rendered(figure, form)


def firing_figure(neurons: Sequence[NeuronRates], title: str) -> Figure:
    """Draws the mean firing rate of each layer of neurons as a bar, the first layer on top, and its distribution.

    The thin line spans 5 % to 95 % of the channels, the thick one 25 % to 75 %. Channels that never or always fire are
    counted at the right edge.

    Args:
        neurons: Firing rates in the order of the network.
        title: Title of the plot.
    """
    figure = figure_of(9.0, 1.6 + 0.3 * len(neurons))
    axes = figure.add_subplot()
    positions = range(len(neurons))
    axes.barh(positions, [100 * neuron.rate for neuron in neurons], height=0.7, color=SOFT, label="mean rate")
    spans = (("0.05", "0.95", 1.2, "5 % to 95 % of channels"), ("0.25", "0.75", 4.0, "25 % to 75 %"))
    for low, high, width, label in spans:
        starts, ends = ([100 * neuron.quantiles[share] for neuron in neurons] for share in (low, high))
        axes.hlines(positions, starts, ends, color=SERIES[0], linewidth=width, label=label)
    for position, neuron in enumerate(neurons):
        counts = ((len(neuron.silent), "silent"), (len(neuron.saturated), "always on"))
        text = ", ".join(f"{count} {kind}" for count, kind in counts if count)
        if text:
            note = f"{text} of {neuron.channels}"
            axes.annotate(
                note, (1.01, position), xycoords=("axes fraction", "data"), va="center", color=SERIES[1], size=8
            )
    axes.set_yticks(positions, [neuron.name for neuron in neurons], fontsize=8)
    axes.set_ylim(len(neurons) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("firing rate: spikes per neuron and step (%)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def firing_plot(neurons: Sequence[NeuronRates], title: str, form: str = "png") -> bytes:
    """Renders `firing_figure` as an image.

    Args:
        neurons: Firing rates in the order of the network.
        title: Title of the plot.
        form: "png", "svg" or "pdf".
    """
    return rendered(firing_figure(neurons, title), form)


def frontier_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], reference: str, label: str, title: str, form: str = "png"
) -> bytes:
    """Plots accuracy against multiply-accumulates, with a line for each token selector.

    Args:
        curves: For each selector, pairs of (MACs, accuracy), both in percent.
        reference: The selector drawn as a horizontal line.
        label: Label of the accuracy axis.
        title: Title of the plot.
        form: "png", "svg" or "pdf".
    """
    figure = figure_of(8.0, 5.0)
    axes = figure.add_subplot()
    for index, (name, points) in enumerate(curves.items()):
        if name == reference:
            axes.axhline(points[0][1], color="black", linestyle="--", linewidth=1, label=name)
            continue
        macs, accuracies = zip(*sorted(points), strict=True)
        axes.plot(macs, accuracies, marker="os^vDP*"[index % 7], markersize=5, label=name)
    axes.set_xlabel("multiply-accumulates (% of unpruned)")
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return rendered(figure, form)


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Figure, form: str) -> bytes:
    """A figure as the bytes of a "png", "svg" or "pdf" file: equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prune"}):
        figure.savefig(buffer, format=form, dpi=120, metadata=undated)
    return buffer.getvalue()
