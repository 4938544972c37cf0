"""Which weights stay, given scores: exact counts, with ties broken by position.

Scores come as blocks of shape (groups, outputs, inputs), where weights that are masked already have -inf: they are the
first to go, so masks only grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["global", "layer", "row"]


@dataclass(frozen=True)
class Goal:
    """How many weights are zero after a step.

    Attributes:
        share: Share of the weights that is zero.
        pattern: Instead: (N, M) for at most N non-zero ones of every M along the inputs.
    """

    share: float
    pattern: tuple[int, int] | None = None

    def zeros(self, weights: int) -> int:
        """How many of so many weights that is, rounded to the nearest; one always stays."""
        return min(int(self.share * weights + 0.5), weights - 1)


def keep_masks(scores: Mapping[str, Tensor], goal: Goal, scope: Scope) -> dict[str, Tensor]:
    """Which weights stay, by the names and in the shapes of `scores`.

    With scope "global" the best weight of every layer stays, whatever the ranking says: a layer without weights would
    cut the network in two.

    Args:
        scores: Blocks by name; -inf: masked already.
        goal: How many go.
        scope: "row" ranks within each output and takes the same share of every one.
    """
    if goal.pattern is not None:
        return {name: _keep_by_pattern(values, *goal.pattern) for name, values in scores.items()}
    if scope == "global":
        return _keep_globally(scores, goal)
    if scope == "layer":
        return {
            name: ~lowest(values.flatten(), zeros_in(values, goal)).view_as(values) for name, values in scores.items()
        }
    return {name: _keep_in_rows(values, goal) for name, values in scores.items()}


def zeros_in(scores: Tensor, goal: Goal) -> int:
    """How many weights of one layer go in all; those that are masked already stay so."""
    return max(goal.zeros(scores.numel()), int(torch.isneginf(scores).sum()))


def spread(amount: int, room: Tensor) -> Tensor:
    """Splits an amount in proportion to `room`, in whole numbers that add up to it and nowhere exceed it.

    Args:
        amount: At most the sum of `room`.
        room: Integers of shape (parts,).
    """
    ends = room.cumsum(0)
    sums = amount * ends // max(int(ends[-1]), 1)  # sums are rounded, not shares: these would not add up
    return sums.diff(prepend=sums.new_zeros(1))


def lowest(scores: Tensor, count: int) -> Tensor:
    """A mask of the `count` lowest entries of a vector; of equal ones those that come first."""
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    below, equal = scores < threshold, scores == threshold
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


def lowest_in_rows(scores: Tensor, counts: Tensor) -> Tensor:
    """A mask of the `counts[i]` lowest entries of every row i of a matrix; of equal ones those that come first."""
    order = scores.argsort(dim=1, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return rank < counts.unsqueeze(1)


def _keep_in_rows(scores: Tensor, goal: Goal) -> Tensor:
    rows = scores.flatten(0, 1)
    masked = torch.isneginf(rows)
    more = zeros_in(scores, goal) - int(masked.sum())
    counts = masked.sum(1) + spread(more, (~masked).sum(1))
    return ~lowest_in_rows(rows, counts).view_as(scores)


def _keep_by_pattern(scores: Tensor, kept: int, of: int) -> Tensor:
    runs = scores.reshape(-1, of)
    counts = torch.full((len(runs),), of - kept, device=scores.device)
    return ~(lowest_in_rows(runs, counts) | torch.isneginf(runs)).view_as(scores)


def _keep_globally(scores: Mapping[str, Tensor], goal: Goal) -> dict[str, Tensor]:
    flat = torch.cat([values.flatten() for values in scores.values()])
    sizes = [values.numel() for values in scores.values()]
    count = max(goal.zeros(len(flat)), int(torch.isneginf(flat).sum()))
    start = 0
    for size in sizes:
        layer = flat[start : start + size]
        layer[layer.eq(layer.max()).nonzero()[-1]] = torch.inf  # the last of equal ones, as the first ones go
        start += size
    gone = torch.split(lowest(flat, min(count, len(flat) - len(sizes))), sizes)
    return {name: ~part.view_as(values) for (name, values), part in zip(scores.items(), gone, strict=True)}
