"""How much accuracy each layer costs: each group pruned alone at several ratios, and ratios that keep within a drop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunecli.methods.allocation import Demand, allocate
from prunecli.methods.params import StructuralParams
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.slice import remove

Judge = Callable[[nn.Module], float]
"""From a network to its accuracy in percent."""
Mend = Callable[[nn.Module, nn.Module, Sequence[ChannelGroup], Keep], Any]
"""Repairs the second network, which is the first without what `keep` leaves out."""

_TRIALS, _FILLED = 7, 12


@dataclass(frozen=True)
class Point:
    """One group pruned alone.

    Attributes:
        ratio: Share of its channels that was to be removed.
        removed: Share that was, after rounding and bounds.
        accuracy: Accuracy of the network, percent.
        drop: Points of accuracy lost.
    """

    ratio: float
    removed: float
    accuracy: float
    drop: float


@dataclass(frozen=True)
class Curve:
    """All points of one group, by rising ratio."""

    group: str
    channels: int
    points: tuple[Point, ...]

    def ratio_within(self, drop: float) -> float:
        """The largest share of channels whose drop is at most `drop`.

        Between points the drop is taken to run straight, and never to fall as more is removed; nothing is promised
        beyond the last point.
        """
        share = height = 0.0
        for point in sorted(self.points, key=lambda point: point.removed):
            higher = max(height, point.drop)
            if higher > drop:
                return share + (point.removed - share) * (drop - height) / (higher - height)
            share, height = point.removed, higher
        return share


@dataclass(frozen=True)
class Proposal:
    """Ratios by group that together keep within the drop.

    Attributes:
        ratios: Share of channels to remove, by group name; all groups.
        accuracy: Accuracy of the network with all of them at once.
        drop: Points lost with all of them at once.
        budget: The drop that each group was granted alone.
    """

    ratios: dict[str, float]
    accuracy: float
    drop: float
    budget: float


class Sensitivity:
    """Prunes groups of one traced network, alone or together, and judges the results; nothing is traced again.

    Networks are really sliced: that is as exact as masking and cheaper to run.

    Args:
        model: The network; not changed.
        groups: Its groups.
        scores: For each group name, scores of shape (units,).
        params: Rounding and bounds.
        judge: Measures accuracy.
        mend: Repairs a pruned network before it is judged.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, Tensor],
        params: StructuralParams,
        judge: Judge,
        mend: Mend,
    ) -> None:
        self._model, self._scores, self._params = model, scores, params
        self._groups = [group for group in groups if group.name in scores]
        self._judge, self._mend = judge, mend
        self.baseline = judge(model)

    def curve(self, name: str, ratios: Sequence[float], on_point: Callable[[Point], None] | None = None) -> Curve:
        """Prunes the group called `name` alone at each ratio."""
        group = next(group for group in self._groups if group.name == name)
        known: dict[float, float] = {}
        points = []
        for ratio in sorted(ratios):
            removed, keep = self._plan([group], {name: ratio})
            if removed not in known:  # rounding gives neighbouring ratios one width
                known[removed] = self._accuracy([group], keep) if removed else self.baseline
            points.append(Point(ratio, removed, known[removed], self.baseline - known[removed]))
            if on_point is not None:
                on_point(points[-1])
        return Curve(name, group.channels, tuple(points))

    def propose(self, curves: Sequence[Curve], max_drop: float) -> Proposal:
        """The largest equal budget per group, at most `max_drop`, whose ratios together keep within `max_drop`.

        Drops of single layers do not simply add up, so every candidate is pruned and judged as a whole.
        """
        best = Proposal({curve.group: 0.0 for curve in curves}, self.baseline, 0.0, 0.0)
        beyond: Proposal | None = None
        low, high = 0.0, 2 * max_drop  # the first trial is the whole of it
        for _ in range(_TRIALS):
            budget = (low + high) / 2
            trial = self._together({curve.group: curve.ratio_within(budget) for curve in curves}, budget)
            if trial.drop <= max_drop:
                best = trial
                if budget >= max_drop:
                    return best
                low = budget
            else:
                beyond, high = trial, budget
        return self._filled(best, beyond, curves, max_drop) if beyond is not None else best

    def _filled(self, best: Proposal, beyond: Proposal, curves: Sequence[Curve], max_drop: float) -> Proposal:
        """Widths move in steps, so several layers at once may separate a good budget from a bad one: adds them singly.

        The layers with the flattest curves come first.
        """
        open_ = [curve for curve in curves if beyond.ratios[curve.group] > best.ratios[curve.group]]
        open_.sort(key=lambda curve: curve.ratio_within(max_drop), reverse=True)
        for curve in open_[:_FILLED]:
            trial = self._together(best.ratios | {curve.group: beyond.ratios[curve.group]}, best.budget)
            if trial.drop <= max_drop:
                best = trial
        return best

    def _together(self, ratios: Mapping[str, float], budget: float) -> Proposal:
        _, keep = self._plan(self._groups, ratios)
        # What rounding makes of them; these lead to the same widths again.
        rounded = {group.name: round(1 - len(keep[group.name]) / group.units, 4) for group in self._groups}
        accuracy = self._accuracy(self._groups, keep) if any(rounded.values()) else self.baseline
        return Proposal(rounded, accuracy, self.baseline - accuracy, budget)

    def _plan(self, groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> tuple[float, dict[str, Tensor]]:
        allocation = allocate(groups, self._scores, self._params, Demand(0.0, ratios))
        return allocation.achieved, allocation.keep

    def _accuracy(self, groups: Sequence[ChannelGroup], keep: dict[str, Tensor]) -> float:
        pruned = copy.deepcopy(self._model)
        remove(pruned, groups, keep)
        self._mend(self._model, pruned, groups, keep)
        return self._judge(pruned)
