"""Rank correlations with bootstrap intervals, and paired tests with a correction for how many there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

_RESAMPLES = 2000
_NOTHING_VARIES = 1e-9


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Spearman's rank correlation; None where all values of one side are equal, since they have no order.

    Args:
        first: Values, shape (n,).
        second: As many values.
    """
    correlation = float(_correlations(np.asarray(first)[None], np.asarray(second)[None])[0])
    return None if math.isnan(correlation) else correlation


def chance(correlation: float | None, pairs: int) -> float | None:
    """The probability of a rank correlation at least as high between values that have nothing to do with each other.

    With r = `correlation`, r * sqrt((n - 2) / (1 - r^2)) has nearly Student's distribution with n - 2 degrees of
    freedom, as in scipy.stats.spearmanr.

    Args:
        correlation: Spearman's.
        pairs: Number of pairs that it was computed from.
    """
    from scipy.stats import t

    if correlation is None or pairs < 3:
        return None
    rest = max(1 - correlation**2, 0.0)
    size = math.copysign(math.inf, correlation) if rest == 0 else correlation * math.sqrt((pairs - 2) / rest)
    return float(t.sf(size, pairs - 2))


def resamples(count: int, seed: int, draws: int = _RESAMPLES) -> Array:
    """Indices of bootstrap resamples of `count` pairs, shape (draws, count)."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def resampled_spearman(first: ArrayLike, second: ArrayLike, indices: Array) -> Array:
    """Spearman's correlation of each resample, shape (draws,); NaN for one in which a side does not vary.

    Several correlations with the same `indices` are paired: their differences have the right spread.
    """
    return _correlations(np.asarray(first)[indices], np.asarray(second)[indices])


def percentile_interval(values: ArrayLike) -> tuple[float, float] | None:
    """The middle 95 % of resampled values (Efron's percentile interval); None where more than half are NaN."""
    known = np.asarray(values)[~np.isnan(values)]
    if 2 * len(known) <= np.size(values):
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def bootstrap_p(differences: ArrayLike) -> float | None:
    """Two-sided p of resampled differences for being 0: twice the smaller share on either side, counting ties twice."""
    known = np.asarray(differences)[~np.isnan(differences)]
    if 2 * len(known) <= np.size(differences):
        return None
    smaller = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(known) + 1))


def bootstrap_p_above(differences: ArrayLike) -> float | None:
    """One-sided p of resampled differences for being 0 or less: their share there; None if more than half are NaN."""
    known = np.asarray(differences)[~np.isnan(differences)]
    if 2 * len(known) <= np.size(differences):
        return None
    return (int((known <= 0).sum()) + 1) / (len(known) + 1)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired test; None where the difference is the same at every seed.

    That is so where neither side depends on the seed: one sample, however often it is repeated. Where only one side
    does not, the test is that of the other side against a fixed value.

    Wilcoxon's test cannot fall below 2 / 2^n, which is 0.0625 for five pairs, and would never find anything.

    Args:
        first: One value for each seed.
        second: Values for the same seeds.
    """
    from scipy.stats import ttest_rel

    differences = np.subtract(first, second, dtype=np.float64)
    scale = max(float(np.abs(first).max()), float(np.abs(second).max()))
    if not has_spread(differences, scale):
        return None
    return float(ttest_rel(first, second).pvalue)


def has_spread(values: ArrayLike, scale: float | None = None) -> bool:
    """Whether values differ by more than rounding.

    Args:
        values: One for each seed.
        scale: The size of what they were computed from; None: their own.
    """
    array = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(array).max()) if scale is None else scale
    return array.size > 1 and float(np.ptp(array)) > _NOTHING_VARIES * max(largest, 1e-300)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for their number by Holm's step-down procedure (Scandinavian Journal of Statistics, 1979).

    Args:
        p_values: One for each test; None where there was none, which does not count.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted


def _correlations(first: Array, second: Array) -> Array:
    """Spearman's correlation of each row, shape (rows,)."""
    from scipy.stats import rankdata

    a, b = (rankdata(side, axis=1) for side in (first, second))
    a, b = (side - side.mean(axis=1, keepdims=True) for side in (a, b))
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        correlations: Array = np.where(norm > 0, (a * b).sum(axis=1) / np.where(norm > 0, norm, 1), np.nan)
    return correlations
