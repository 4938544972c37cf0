"""Pictures of an audit: ranks of scores against ranks of ablations, correlations with intervals, agreement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from prunecli.report.audit import Audit, Audited
from prunecli.report.plots import figure_of, rendered

_COLUMNS = 4


def audit_plots(audit: Audit) -> dict[str, bytes]:
    """The pictures as PNG, by file name."""
    return {
        "ranks.png": _ranks(audit),
        "correlations.png": _correlations(audit),
        "agreement.png": _agreement(audit),
    }


def _ranks(audit: Audit) -> bytes:
    """One panel for each method: where it ranks each ablated unit, and where its ablation does."""
    methods = _best_first(audit)
    lines = math.ceil(len(methods) / _COLUMNS)
    figure = figure_of(3.0 * min(len(methods), _COLUMNS), 0.6 + 3.0 * lines)
    for number, row in enumerate(methods, start=1):
        axes = figure.add_subplot(lines, min(len(methods), _COLUMNS), number)
        pairs = [(unit.rise, unit.scores[row.label]) for unit in audit.ablations]
        known = [(rise, score) for rise, score in pairs if score is not None]
        rises, scores = _order(rise for rise, _ in known), _order(score for _, score in known)
        axes.plot([1, max(len(known), 2)], [1, max(len(known), 2)], color="black", linewidth=0.8, alpha=0.4)
        axes.scatter(rises, scores, s=12, color="#08519c", alpha=0.7)
        value = row.with_ablation.value
        axes.set_title(f"{row.label}  {'-' if value is None else f'{value:.2f}'}", fontsize=10)
        axes.set_xlabel("rank by ablation", fontsize=8)
        axes.set_ylabel("rank by score", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.suptitle(f"{_name(audit)}: {len(audit.ablations)} units, {audit.data.images} samples", fontsize=11)
    return rendered(figure, "png")


def _correlations(audit: Audit) -> bytes:
    """Rank correlations with their intervals, the highest on top; the dashed line is what chance gives."""
    methods = [row for row in _best_first(audit) if row.with_ablation.value is not None]
    figure = figure_of(7.0, 1.6 + 0.35 * len(methods))
    axes = figure.add_subplot()
    for position, row in enumerate(methods):
        value = row.with_ablation.value or 0.0
        low, high = row.with_ablation.interval or (value, value)
        axes.hlines(position, low, high, color="#08519c", linewidth=1.5)
        axes.plot(value, position, "o", color="#08519c", markersize=5)
    axes.axvline(0, color="black", linestyle="--", linewidth=1)
    if audit.ablation_halves is not None:
        axes.axvline(audit.ablation_halves, color="#cb181d", linestyle=":", linewidth=1)
        axes.set_title("dotted: two halves of the ablation", fontsize=9)
    axes.set_yticks(range(len(methods)), [row.label for row in methods], fontsize=8)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel("rank correlation with exact ablation")
    axes.grid(axis="x", alpha=0.3)
    return rendered(figure, "png")


def _agreement(audit: Audit) -> bytes:
    """A matrix of rank correlations between methods."""
    labels = [row.label for row in _best_first(audit)]
    values = [[audit.agreement[one][other] for other in labels] for one in labels]
    side = 2.5 + 0.6 * len(labels)
    figure = figure_of(side + 1.0, side)
    axes = figure.add_subplot()
    image = axes.imshow([[math.nan if v is None else v for v in row] for row in values], cmap="RdBu_r", vmin=-1, vmax=1)
    for line, row in enumerate(values):
        for column, value in enumerate(row):
            if value is not None:
                colour = "white" if abs(value) > 0.6 else "black"
                axes.text(column, line, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_title(f"agreement over {audit.prunable_units} units", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return rendered(figure, "png")


def _best_first(audit: Audit) -> Sequence[Audited]:
    return sorted(audit.methods, key=lambda row: 2.0 if row.with_ablation.value is None else -row.with_ablation.value)


def _order(values: Iterable[float]) -> list[float]:
    from scipy.stats import rankdata

    ranks: list[float] = rankdata(list(values)).tolist()
    return ranks


def _name(audit: Audit) -> str:
    return (audit.model.path or audit.model.ref).rpartition("/")[2]
