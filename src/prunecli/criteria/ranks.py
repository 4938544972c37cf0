"""Ranks of scores, and how well two rankings agree."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy import stats
from torch import Tensor

_FEWEST = 3
"""Units of a group whose ranking can agree more or less with another."""


def ranks(scores: Tensor) -> Tensor:
    """Ranks between 0 and 1, the lowest score first; equal scores share the mean of their ranks.

    Args:
        scores: Shape (units,).

    Returns:
        (rank - 1/2) / units, shape (units,), float64.
    """
    return torch.from_numpy(stats.rankdata(scores.double().numpy()) - 0.5) / len(scores)


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation; 0 where one of the two is constant, and 1 where both are."""
    a, b = ranks(first) - 0.5, ranks(second) - 0.5
    spread = float((a.square().sum() * b.square().sum()).sqrt())
    if spread == 0:
        return float(bool((a == b).all()))
    return float((a * b).sum()) / spread


def reliability(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """How far the ranking from all data can be relied on, from the rankings of two halves that share none of it.

    It is what other data of the same amount would agree with, and lacks what both halves have in common. Where scores
    are random estimates too, their noise is in it, since either half draws its own numbers.

    Spearman's correlation in each group, averaged with the units as weights, is that of half the data. The formula of
    Spearman and Brown, 2r / (1 + r), makes it that of all.

    Args:
        first: Scores from one half by group name, each of shape (units,).
        second: Those from the other half.

    Returns:
        Between 0 and 1; 1 where no group has more than two units.
    """
    compared = [name for name in first if len(first[name]) >= _FEWEST]
    units = sum(len(first[name]) for name in compared)
    if units == 0:
        return 1.0
    mean = sum(spearman(first[name], second[name]) * len(first[name]) for name in compared) / units
    return max(0.0, 2 * mean / (1 + mean)) if mean > -1 else 0.0
