"""Rank correlations, intervals and corrected tests, against scipy and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prunecli.measure.rank_statistics import (
    bootstrap_p,
    chance,
    holm,
    paired_p,
    percentile_interval,
    resampled_spearman,
    resamples,
    spearman,
)

_VALUES = st.lists(st.integers(-5, 5).map(float), min_size=6, max_size=20)


@given(_VALUES, st.randoms(use_true_random=False))
def test_spearman_and_its_chance_are_those_of_scipy(first: list[float], random: object) -> None:
    second = [random.choice(first) + random.choice((0, 1)) for _ in first]  # type: ignore[attr-defined]
    if min(first) == max(first) or min(second) == max(second):
        assert spearman(first, second) is None and chance(None, len(first)) is None
        return
    expected = stats.spearmanr(first, second, alternative="greater")
    value = spearman(first, second)
    assert value == pytest.approx(expected.statistic, abs=1e-12)
    if abs(value or 0) < 1 - 1e-9:
        assert chance(value, len(first)) == pytest.approx(expected.pvalue, abs=1e-9)


def test_order_alone_counts() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -(values**3)) == pytest.approx(-1)


def test_resamples_are_seeded_and_intervals_are_scipys() -> None:
    draws = np.random.default_rng(1)
    first = draws.normal(size=50)
    second = first + draws.normal(size=50)
    indices = resamples(50, seed=3)
    assert np.array_equal(indices, resamples(50, seed=3)) and not np.array_equal(indices, resamples(50, seed=4))
    drawn = resampled_spearman(first, second, indices)
    by_hand = [stats.spearmanr(first[row], second[row]).statistic for row in indices[:20]]
    assert drawn[:20] == pytest.approx(by_hand)
    theirs = stats.bootstrap(
        (first, second),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=999,
        random_state=0,
    ).confidence_interval
    assert percentile_interval(drawn) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_resamples_without_an_order_do_not_count() -> None:
    drawn = resampled_spearman([1.0, 1.0, 2.0], [1.0, 2.0, 3.0], np.array([[0, 1, 0], [0, 1, 2]]))
    assert np.isnan(drawn[0]) and drawn[1] == pytest.approx(stats.spearmanr([1, 1, 2], [1, 2, 3]).statistic)
    assert percentile_interval([np.nan, np.nan, 0.5]) is None and bootstrap_p([np.nan, np.nan, 0.5]) is None
    assert percentile_interval([0.5, 0.5, np.nan]) == (0.5, 0.5)


def test_p_of_resampled_differences_counts_sides() -> None:
    assert bootstrap_p(np.full(99, 0.1)) == pytest.approx(2 * 1 / 100)
    assert bootstrap_p([0.1] * 90 + [-0.1] * 9) == pytest.approx(2 * 10 / 100)
    assert bootstrap_p(np.zeros(99)) == 1


def test_paired_test_is_students() -> None:
    first, second = [91.0, 90.5, 92.0, 91.2, 90.9], [90.1, 90.4, 90.9, 90.8, 90.0]
    differences = np.subtract(first, second)
    t = differences.mean() / (differences.std(ddof=1) / 5**0.5)
    assert paired_p(first, second) == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert paired_p(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_what_never_varies_is_not_tested() -> None:
    assert paired_p([90.0, 91.0, 92.0], [89.9, 90.9, 91.9]) is None  # a p of 0 would be rounding
    assert paired_p([90.0, 91.0], [90.0, 91.0]) is None
    assert paired_p([90.0], [80.0]) is None
    assert paired_p([90.0, 91.0], [89.0, 91.5]) is not None


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    adjusted = [p for p in holm(p_values) if p is not None]
    for p, after in zip(p_values, adjusted, strict=True):
        assert p <= after <= min(1.0, len(p_values) * p) + 1e-12 or after == max(
            other for raw, other in zip(p_values, adjusted, strict=True) if raw <= p
        )
    order = np.argsort(p_values, kind="stable")
    assert all(adjusted[a] <= adjusted[b] for a, b in itertools.pairwise(order))
