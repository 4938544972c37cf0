"""Figures as pictures. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

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
