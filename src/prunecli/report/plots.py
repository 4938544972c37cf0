"""Figures as pictures. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunecli.report.schema import NeuronRates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEGEND_ROWS = 24
_LARGEST_LEGEND = 72


def sensitivity_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], max_drop: float, title: str, form: str = "png"
) -> bytes:
    """Accuracy lost against the share of channels removed, a line for each layer, early layers dark.

    Args:
        curves: For each layer (share removed, points of accuracy lost), both by rising share.
        max_drop: Drawn as a dashed line.
        title: What was measured.
        form: "png", "svg" or "pdf".
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = -(-min(len(curves), _LARGEST_LEGEND) // _LEGEND_ROWS)
    figure = Figure(figsize=(7.0 + 2.2 * columns, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"]
    markers = "os^vD"
    for place, (name, points) in enumerate(curves.items()):
        shares, drops = [0.0, *(100 * x for x, _ in points)], [0.0, *(y for _, y in points)]
        colour = colours(0.95 * place / max(len(curves) - 1, 1))
        axes.plot(shares, drops, marker=markers[place % len(markers)], markersize=4, color=colour, label=name)
    axes.axhline(max_drop, color="black", linestyle="--", linewidth=1, label=f"limit {max_drop:g}")
    axes.set_xlabel("channels of the layer removed (%)")
    axes.set_ylabel("top-1 lost (points)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if len(curves) <= _LARGEST_LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, ncols=max(columns, 1), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=120)
    return buffer.getvalue()


def firing_figure(neurons: Sequence[NeuronRates], title: str) -> Figure:
    """A bar for each layer of neurons, the first on top: its mean rate, and where its channels lie.

    The thin line spans 5 % to 95 % of the channels, the thick one 25 % to 75 %. Layers with channels that never or
    always fire say so at the right edge.

    Args:
        neurons: What was measured, in the order of the network.
        title: What it was measured on.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 1.6 + 0.3 * len(neurons)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(neurons))
    axes.barh(places, [100 * neuron.rate for neuron in neurons], height=0.7, color="#9ecae1", label="mean rate")
    spans = (("0.05", "0.95", 1.2, "5 % to 95 % of channels"), ("0.25", "0.75", 4.0, "25 % to 75 %"))
    for low, high, width, label in spans:
        starts, ends = ([100 * neuron.quantiles[share] for neuron in neurons] for share in (low, high))
        axes.hlines(places, starts, ends, color="#08519c", linewidth=width, label=label)
    for place, neuron in enumerate(neurons):
        said = [f"{len(found)} {name}" for found, name in ((neuron.silent, "silent"), (neuron.saturated, "always on"))]
        text = ", ".join(entry for entry in said if not entry.startswith("0 "))
        if text:
            note = f"{text} of {neuron.channels}"
            axes.annotate(note, (1.01, place), xycoords=("axes fraction", "data"), va="center", color="#cb181d", size=8)
    axes.set_yticks(places, [neuron.name for neuron in neurons], fontsize=8)
    axes.set_ylim(len(neurons) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("firing rate: spikes per neuron and step (%)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def firing_plot(neurons: Sequence[NeuronRates], title: str, form: str = "png") -> bytes:
    """`firing_figure` as a picture.

    Args:
        neurons: See there.
        title: See there.
        form: "png", "svg" or "pdf".
    """
    buffer = io.BytesIO()
    firing_figure(neurons, title).savefig(buffer, format=form, dpi=120)
    return buffer.getvalue()


def frontier_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], reference: str, label: str, title: str, form: str = "png"
) -> bytes:
    """Accuracy against multiply-accumulates, a line for each way of choosing.

    Args:
        curves: For each way (MACs, accuracy), both in percent.
        reference: The way that is drawn as a level line.
        label: Of the accuracy.
        title: What was measured.
        form: "png", "svg" or "pdf".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (name, points) in enumerate(curves.items()):
        if name == reference:
            axes.axhline(points[0][1], color="black", linestyle="--", linewidth=1, label=name)
            continue
        across, height = zip(*sorted(points), strict=True)
        axes.plot(across, height, marker="os^vDP*"[place % 7], markersize=5, label=name)
    axes.set_xlabel("multiply-accumulates (% of unpruned)")
    axes.set_ylabel(label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=120)
    return buffer.getvalue()
