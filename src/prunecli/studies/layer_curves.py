"""What each layer costs in accuracy: groups pruned alone at several ratios, and ratios that keep within a drop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.methods.allocation import Demand, allocate
from prunecli.methods.params import StructuralParams
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.slice import remove

_Judge = Callable[[nn.Module], float]
"""Returns the accuracy of a network, percent."""
_Repair = Callable[[nn.Module, nn.Module, Sequence[ChannelGroup], Keep], Any]
"""Repairs the second network, which is the first one with only the channels in `keep`."""

_TRIALS, _MAX_ADDED = 7, 12


@dataclass(frozen=True)
class Point:
    """One group pruned alone.

    Attributes:
        ratio: Requested share of its channels.
        removed: Share that was removed, after rounding and bounds.
        accuracy: Accuracy of the network, percent.
        drop: Points of accuracy lost.
    """

    ratio: float
    removed: float
    accuracy: float
    drop: float


@dataclass(frozen=True)
class Curve:
    """All points of one group, by increasing ratio."""

    group: str
    channels: int
    points: tuple[Point, ...]

    def ratio_within(self, drop: float) -> float:
        """The largest share of channels whose drop is at most `drop`.

        Drops are interpolated linearly between points and never decrease as more is removed; nothing is extrapolated
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
        budget: The drop allowed for each group alone.
    """

    ratios: dict[str, float]
    accuracy: float
    drop: float
    budget: float


class Sensitivity:
    """Prunes groups of one traced network, alone or together, and judges the results; nothing is traced again.

    Channels are removed rather than masked, which is just as exact and cheaper to run.

    Args:
        model: The network; not changed.
        groups: Its groups.
        scores: For each group name, scores of shape (units,).
        params: Rounding and bounds.
        judge: Measures accuracy.
        repair: Repairs a pruned network before it is judged.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, Tensor],
        params: StructuralParams,
        judge: _Judge,
        repair: _Repair,
    ) -> None:
        self._model, self._scores, self._params = model, scores, params
        self._groups = [group for group in groups if group.name in scores]
        self._judge, self._repair = judge, repair
        self.baseline = judge(model)

    def curve(self, name: str, ratios: Sequence[float], on_point: Callable[[Point], None] | None = None) -> Curve:
        """Prunes the group called `name` alone at each ratio."""
        group = next(group for group in self._groups if group.name == name)
        known: dict[float, float] = {}
        points = []
        for ratio in sorted(ratios):
            removed, keep = self._plan([group], {name: ratio})
            if removed not in known:  # after rounding, similar ratios may give the same width
                known[removed] = self._accuracy([group], keep) if removed else self.baseline
            points.append(Point(ratio, removed, known[removed], self.baseline - known[removed]))
            if on_point is not None:
                on_point(points[-1])
        return Curve(name, group.channels, tuple(points))

    def propose(self, curves: Sequence[Curve], max_drop: float) -> Proposal:
        """The largest equal budget per group, at most `max_drop`, whose ratios together keep within `max_drop`.

        Drops of single layers do not add up, so every candidate is pruned and judged as a whole.
        """
        best = Proposal({curve.group: 0.0 for curve in curves}, self.baseline, 0.0, 0.0)
        beyond: Proposal | None = None
        low, high = 0.0, 2 * max_drop  # so the first trial is max_drop itself
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
        """Adds layers one by one, since widths move in steps and several of them may change between two budgets.

        Layers with the flattest curves come first.
        """
        candidates = [curve for curve in curves if beyond.ratios[curve.group] > best.ratios[curve.group]]
        candidates.sort(key=lambda curve: curve.ratio_within(max_drop), reverse=True)
        for curve in candidates[:_MAX_ADDED]:
            trial = self._together(best.ratios | {curve.group: beyond.ratios[curve.group]}, best.budget)
            if trial.drop <= max_drop:
                best = trial
        return best

    def _together(self, ratios: Mapping[str, float], budget: float) -> Proposal:
        _, keep = self._plan(self._groups, ratios)
        # The ratios after rounding, which give the same widths again.
        rounded = {group.name: round(1 - len(keep[group.name]) / group.units, 4) for group in self._groups}
        accuracy = self._accuracy(self._groups, keep) if any(rounded.values()) else self.baseline
        return Proposal(rounded, accuracy, self.baseline - accuracy, budget)

    def _plan(self, groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> tuple[float, dict[str, Tensor]]:
        allocation = allocate(groups, self._scores, self._params, Demand(0.0, ratios))
        return allocation.achieved, allocation.keep

    def _accuracy(self, groups: Sequence[ChannelGroup], keep: dict[str, Tensor]) -> float:
        pruned = copied(self._model)
        remove(pruned, groups, keep)
        self._repair(self._model, pruned, groups, keep)
        return self._judge(pruned)
