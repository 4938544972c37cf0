"""What `prune sensitivity` shows: the cost of each layer alone, and of the proposed ratios together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from prunecli.report.numbers import fixed
from prunecli.report.pruning_tables import left_alone_tables
from prunecli.report.scores import Score
from prunecli.report.table import Table


class _Point(Protocol):
    @property
    def ratio(self) -> float: ...
    @property
    def drop(self) -> float: ...


class _Curve(Protocol):
    @property
    def group(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def points(self) -> Sequence[_Point]: ...


class _Proposal(Protocol):
    @property
    def ratios(self) -> Mapping[str, float]: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def drop(self) -> float: ...


def sensitivity_tables(
    curves: Sequence[_Curve],
    baseline: float,
    proposal: _Proposal,
    left_out: Mapping[str, str],
    images: int,
    score: Score,
) -> list[Table]:
    """Points lost by layer and ratio, the proposal as a whole, and the layers that were left out.

    Args:
        curves: One for each layer, all with the same ratios.
        baseline: Merit of the unpruned network.
        proposal: Ratios for all layers together.
        left_out: Reasons by layer name.
        images: Number of validation images.
        score: What was measured.
    """
    rows = [
        (
            curve.group,
            str(curve.channels),
            *(fixed(point.drop, score.digits) for point in curve.points),
            fixed(100 * proposal.ratios[curve.group], 1, " %"),
        )
        for curve in curves
    ]
    ratios = [point.ratio for point in curves[0].points]
    columns = ("layer", "channels", *(f"{100 * ratio:g} %" for ratio in ratios), "recipe")
    title = f"{score.label}: {score.lost_unit} with each layer alone at these ratios"
    together = [
        (f"{score.label} as it is", score.text(score.merit(baseline))),
        (f"{score.label} with the recipe", score.text(score.merit(proposal.accuracy))),
        (score.lost_unit, fixed(proposal.drop, score.digits)),
        ("validation images", str(images)),
    ]
    return [
        Table(columns, rows, title=title, numeric=tuple(range(1, len(columns)))),
        Table(("all layers together", "value"), together),
        *left_alone_tables(left_out),
    ]
