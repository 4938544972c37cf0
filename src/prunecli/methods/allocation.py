"""How many units each group keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunecli.methods.params import StructuralParams
from prunecli.surgery.groups import ChannelGroup


@dataclass(frozen=True)
class Allocation:
    """Kept units by group name, and for groups that were held back, why."""

    keep: dict[str, Tensor]
    held_back: dict[str, str]
    requested: float
    achieved: float


def allocate(groups: Sequence[ChannelGroup], scores: dict[str, Tensor], params: StructuralParams) -> Allocation:
    """Decides which units stay.

    With scope "local" every group loses `ratio` of its channels. With "global" all units compete in one ranking after
    each group's scores are divided by their mean, and the threshold is searched so that, with widths rounded and
    clamped, the share of channels removed comes as close to `ratio` as it can.

    Args:
        groups: The groups that may shrink.
        scores: For each group name, scores of shape (units,).
        params: Ratio, scope, rounding and bounds.
    """
    if not groups:
        return Allocation({}, {}, params.ratio, 0.0)
    limits = [_Limits.of(group, params) for group in groups]
    if params.scope == "local":
        counts = [limit.nearest(limit.units * (1 - params.ratio)) for limit in limits]
    else:
        counts = _global_counts(groups, scores, params, limits)
    keep: dict[str, Tensor] = {}
    held_back: dict[str, str] = {}
    for group, limit, count in zip(groups, limits, counts, strict=True):
        ranked = torch.sort(scores[group.name], descending=True, stable=True).indices
        keep[group.name] = ranked[:count].sort().values
        reason = limit.reason(count, params)
        if reason:
            held_back[group.name] = reason
    total = sum(group.channels for group in groups)
    kept = sum(count * group.channels_per_unit for group, count in zip(groups, counts, strict=True))
    return Allocation(keep, held_back, params.ratio, 1 - kept / total if total else 0.0)


@dataclass(frozen=True)
class _Limits:
    units: int
    smallest: int
    step: int
    rounding: int

    @classmethod
    def of(cls, group: ChannelGroup, params: StructuralParams) -> _Limits:
        rounding = params.round_to or _rounding_for(group.channels)
        step = rounding // math.gcd(rounding, group.channels_per_unit)
        fewest = max(params.min_width, math.ceil((1 - params.max_ratio) * group.channels - 1e-9))
        smallest = math.ceil(math.ceil(fewest / group.channels_per_unit) / step) * step
        return cls(group.units, min(group.units, smallest), step, rounding)

    def nearest(self, units: float) -> int:
        rounded = math.floor(units / self.step + 0.5) * self.step
        return max(self.smallest, min(self.units, rounded))

    def reason(self, count: int, params: StructuralParams) -> str | None:
        if self.smallest == self.units:
            return f"its {self.units} units cannot shrink (rounding to {self.rounding}, minimum {params.min_width})"
        if count == self.units:
            return (
                f"rounding to multiples of {self.rounding} keeps its full width"
                if params.scope == "local"
                else f"all its channels rank above the threshold (or rounding to {self.rounding} keeps them)"
            )
        if count == self.smallest:
            return f"held at its smallest width (max ratio {params.max_ratio:g}, minimum {params.min_width})"
        return None


def _rounding_for(width: int) -> int:
    rounding = 8
    while rounding > 1 and rounding * 8 > width:
        rounding //= 2
    return rounding


def _global_counts(
    groups: Sequence[ChannelGroup], scores: dict[str, Tensor], params: StructuralParams, limits: list[_Limits]
) -> list[int]:
    scaled = [scores[g.name] / scores[g.name].mean().clamp_min(torch.finfo(torch.float64).tiny) for g in groups]
    ordered = [torch.sort(values).values for values in scaled]
    thresholds = torch.unique(torch.cat(ordered))
    target = (1 - params.ratio) * sum(group.channels for group in groups)

    def counts_at(place: int) -> list[int]:
        below = [int(torch.searchsorted(values, thresholds[place])) for values in ordered]
        return [limit.nearest(limit.units - b) for limit, b in zip(limits, below, strict=True)]

    def width(counts: list[int]) -> int:
        return sum(count * group.channels_per_unit for count, group in zip(counts, groups, strict=True))

    low, high = 0, len(thresholds) - 1
    while high - low > 1:  # widths fall as the threshold rises
        middle = (low + high) // 2
        low, high = (middle, high) if width(counts_at(middle)) >= target else (low, middle)
    return min((counts_at(low), counts_at(high)), key=lambda counts: abs(width(counts) - target))
