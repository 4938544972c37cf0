"""Allocation: how many units each group keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prunecli.methods.consequence import Consequences
from prunecli.methods.params import StructuralParams
from prunecli.surgery.groups import ChannelGroup

_BINS = 20
"""Of the histogram of scores."""
Signature = tuple[tuple[str, str, int, str], ...]


@dataclass(frozen=True)
class Allocation:
    """Kept units by group name, and the reason for each group that was held back."""

    keep: dict[str, Tensor]
    held_back: dict[str, str]
    requested: float
    achieved: float

    def score_histogram(self, scores: Mapping[str, Tensor]) -> dict[str, Any]:
        """How the scores of kept and of removed units are distributed, each divided by the mean size in its group.

        Args:
            scores: By group name, shape (units,).

        Returns:
            "edges" of the bins, the last of which holds everything above it too, and by group the numbers of "kept" and
            of "removed" units in them.
        """
        sizes = {
            name: (scores[name].double() / scores[name].double().abs().mean().clamp_min(1e-300)).cpu()
            for name in self.keep
            if name in scores and bool(scores[name].isfinite().all())
        }
        if not sizes:
            return {}
        pooled = torch.cat(list(sizes.values()))
        low, high = float(pooled.min()), float(pooled.sort().values[int(0.995 * (len(pooled) - 1))])
        edges = torch.linspace(low, max(high, low + 1e-12), _BINS + 1, dtype=torch.float64)
        groups = {}
        for name, size in sizes.items():
            kept = torch.zeros(len(size), dtype=torch.bool)
            kept[self.keep[name].cpu()] = True
            bins = torch.bucketize(size.clamp(low, float(edges[-1])), edges[1:-1], right=True)
            groups[name] = {
                "kept": torch.bincount(bins[kept], minlength=_BINS).tolist(),
                "removed": torch.bincount(bins[~kept], minlength=_BINS).tolist(),
            }
        return {"edges": [round(edge, 6) for edge in edges.tolist()], "groups": groups}


@dataclass(frozen=True)
class Demand:
    """How much to remove.

    Attributes:
        ratio: Share of the channels, counted against the dense network.
        own: Ratios of individual groups by name, instead of `ratio`; all other groups keep everything.
        dense: Channels of each group before anything was removed; default: as they are now.
        consequences: What removals were measured to cost; scope "measured" needs them, and with it the ratio is one of
            the cost that they know.
        widths: Numbers of units, ascending, that single groups may keep; default: those that the parameters allow.
    """

    ratio: float
    own: Mapping[str, float] | None = None
    dense: Mapping[str, int] = field(default_factory=dict)
    consequences: Consequences | None = None
    widths: Mapping[str, Sequence[int]] = field(default_factory=dict)


def allocate(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    params: StructuralParams,
    demand: Demand | None = None,
) -> Allocation:
    """Decides which units stay.

    With scope "local" every group loses `ratio` of its channels. With "global" all units compete in one ranking after
    each group's scores are divided by their mean (or as they are, `normalise="none"`), and the threshold is searched so
    that, with widths rounded and clamped, the share of channels removed comes as close to `ratio` as it can. With
    "isomorphic" the groups with the same signature compete among themselves (Fang et al., Isomorphic Pruning for Vision
    Models, ECCV 2024). "auto" counts as global here.

    Args:
        groups: The groups that may shrink.
        scores: For each group name, scores of shape (units,).
        params: Scope, rounding and bounds.
        demand: How much to remove; default: the ratio in `params`, of the present channels.
    """
    demand = demand or Demand(params.ratio)
    if not groups:
        return Allocation({}, {}, demand.ratio, 0.0)
    dense = {group.name: demand.dense.get(group.name, group.channels) for group in groups}
    limits = {group.name: _Limits.of(group, params, dense[group.name]) for group in groups}
    limits |= {name: limits[name].among(widths) for name, widths in demand.widths.items()}
    counts = _counts(groups, scores, params, demand, limits)
    keep: dict[str, Tensor] = {}
    held_back: dict[str, str] = {}
    for group in groups:
        count = counts[group.name]
        ranked = torch.sort(scores[group.name], descending=True, stable=True).indices
        keep[group.name] = ranked[:count].sort().values
        reason = limits[group.name].reason(count, params)
        if demand.own is not None and not demand.own.get(group.name):
            unnamed = "not named in layer_ratio" if params.layer_ratio else "the method decides on other layers alone"
            reason = "its own ratio is 0" if group.name in demand.own else unnamed
        if reason:
            held_back[group.name] = reason
    total = sum(dense.values())
    kept = sum(counts[group.name] * group.channels_per_unit for group in groups)
    requested = demand.ratio
    if demand.own is not None:
        requested = sum(demand.own.get(name, 0.0) * width for name, width in dense.items()) / total
    return Allocation(keep, held_back, requested, 1 - kept / total if total else 0.0)


def allowed_units(
    groups: Sequence[ChannelGroup], params: StructuralParams, dense: Mapping[str, int]
) -> dict[str, list[int]]:
    """Numbers of units that each group may keep, ascending.

    Args:
        groups: The groups.
        params: Rounding and bounds.
        dense: The channels of each before anything was removed.
    """
    return {group.name: _Limits.of(group, params, dense[group.name]).allowed() for group in groups}


def comparable(scores: Sequence[Tensor], params: StructuralParams) -> list[Tensor]:
    """Scores of layers as they enter one ranking: divided by their layer's mean, or raw, as the parameters say.

    Args:
        scores: One tensor of shape (units,) for each layer.
        params: Parameters of the method.
    """
    if params.normalise == "none":
        return list(scores)
    return [values / values.mean().clamp_min(torch.finfo(torch.float64).tiny) for values in scores]


def signature(group: ChannelGroup) -> Signature:
    """What makes groups alike: their members' names without digits, tensors, dimensions and roles."""
    return tuple(
        sorted(
            {(re.sub(r"\d+", "#", member.module), member.tensor, member.dim, member.role) for member in group.members}
        )
    )


@dataclass(frozen=True)
class _Limits:
    units: int
    dense_units: int
    smallest: int
    step: int
    rounding: int
    widths: tuple[int, ...] = ()

    @classmethod
    def of(cls, group: ChannelGroup, params: StructuralParams, dense: int) -> _Limits:
        rounding = params.round_to or _rounding_for(dense)
        each = group.channels_per_unit
        step = math.lcm(rounding // math.gcd(rounding, each), group.multiple)
        fewest = max(params.min_width, math.ceil((1 - params.max_ratio) * dense - 1e-9))
        smallest = math.ceil(math.ceil(fewest / each) / step) * step
        return cls(group.units, dense // each, min(group.units, smallest), step, rounding)

    def among(self, widths: Sequence[int]) -> _Limits:
        """With these widths alone, ascending."""
        return replace(self, widths=tuple(widths), smallest=widths[0])

    def nearest(self, units: float) -> int:
        if self.widths:
            return min(self.widths, key=lambda width: (abs(width - units), -width))
        rounded = math.floor(units / self.step + 0.5) * self.step
        return max(self.smallest, min(self.units, rounded))

    def allowed(self) -> list[int]:
        """Numbers of units that may stay, ascending; the last is all that there are."""
        if self.widths:
            return list(self.widths)
        return sorted({*range(self.smallest, self.units, self.step), self.units})

    def reason(self, count: int, params: StructuralParams) -> str | None:
        if self.smallest == self.dense_units:
            return (
                f"its {self.dense_units} units cannot shrink (rounding to {self.rounding}, minimum {params.min_width})"
            )
        if count == self.dense_units:
            if self.widths:
                return "no narrower width that was timed is nearer to its share, or costs less on trial"
            if params.scope == "local" or params.layer_ratio:
                return f"rounding to multiples of {self.rounding} keeps its full width"
            if params.scope == "measured":
                return f"it costs more on trial than others do (or rounding to {self.rounding} keeps it)"
            return f"all its channels rank above the threshold (or rounding to {self.rounding} keeps them)"
        if count == self.smallest:
            return f"held at its smallest width (max ratio {params.max_ratio:g}, minimum {params.min_width})"
        return None


def _rounding_for(width: int) -> int:
    rounding = 8
    while rounding > 1 and rounding * 8 > width:
        rounding //= 2
    return rounding


def _counts(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    params: StructuralParams,
    demand: Demand,
    limits: Mapping[str, _Limits],
) -> dict[str, int]:
    """Units that every group keeps."""
    if demand.own is not None or params.scope == "local":
        ratios = {g.name: demand.ratio if demand.own is None else demand.own.get(g.name, 0.0) for g in groups}
        return {
            name: limits[name].nearest(limits[name].dense_units * (1 - ratio)) if ratio else limits[name].units
            for name, ratio in ratios.items()
        }
    if params.scope == "measured":
        assert demand.consequences is not None, "they are measured before"
        return demand.consequences.counts(demand.ratio, {name: limit.allowed() for name, limit in limits.items()})
    competing: dict[Signature, list[ChannelGroup]] = {}
    for group in groups:
        competing.setdefault(signature(group) if params.scope == "isomorphic" else (), []).append(group)
    counts: dict[str, int] = {}
    for rivals in competing.values():
        chosen = [limits[group.name] for group in rivals]
        counts |= zip(
            (group.name for group in rivals),
            _ranked_counts(rivals, scores, params, demand.ratio, chosen),
            strict=True,
        )
    return counts


def _ranked_counts(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    params: StructuralParams,
    ratio: float,
    limits: Sequence[_Limits],
) -> list[int]:
    """Counts of groups that compete in one ranking."""
    ranks = _ranks(comparable([scores[group.name] for group in groups], params))
    dense = sum(limit.dense_units * group.channels_per_unit for limit, group in zip(limits, groups, strict=True))
    target = (1 - ratio) * dense

    def counts_at(weakest: int) -> list[int]:
        if weakest > last:  # everything ranks below; only the limits hold
            return [limit.smallest for limit in limits]
        below = [int(torch.searchsorted(of_group, weakest)) for of_group in ranks]
        return [limit.nearest(limit.units - b) for limit, b in zip(limits, below, strict=True)]

    def width(counts: list[int]) -> int:
        return sum(count * group.channels_per_unit for count, group in zip(counts, groups, strict=True))

    last = sum(group.units for group in groups)
    low, high = 0, last + 1
    while high - low > 1:  # widths fall as more of the ranking goes
        middle = (low + high) // 2
        low, high = (middle, high) if width(counts_at(middle)) >= target else (low, middle)
    return min((counts_at(low), counts_at(high)), key=lambda counts: abs(width(counts) - target))


def _ranks(scores: Sequence[Tensor]) -> list[Tensor]:
    """Ranks of each group's units among all units, weakest first, sorted: one (units,) tensor per group.

    Equal scores of several groups are dealt out evenly, so that a ranking full of zeros does not empty one group first.
    """
    ordered = [torch.sort(values).values for values in scores]
    depth = torch.cat([torch.arange(len(values)) / len(values) for values in ordered])
    by_depth = torch.sort(depth, stable=True).indices
    by_score = torch.sort(torch.cat(ordered)[by_depth], stable=True).indices
    rank = torch.empty(len(depth), dtype=torch.int64)
    rank[by_depth[by_score]] = torch.arange(len(depth))
    return [part.sort().values for part in torch.split(rank, [len(values) for values in ordered])]
