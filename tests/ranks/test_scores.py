"""What two processes come to together is what one comes to alone: scores, plans, repaired weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import cases
from tests.ranks.processes import Ranks

_SAME = 1e-9
"""How far scores may differ from those of one process, relative to the largest; 5e-14 is reached."""
_REPAIRED = 1e-6
"""The same of repaired weights: running statistics of normalisations, which one process rounds after each batch."""


def _off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference relative to the largest number."""
    largest = wanted.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - wanted.double()).abs().max() / largest)


def _check(two: list[dict[str, Any]], one: dict[str, Any], most: float, what: object) -> None:
    assert list(two[0]) == list(two[1]) and set(two[0]) == set(one), what
    for name, wanted in one.items():
        first, second = (found[name] for found in two)
        if isinstance(wanted, str):
            assert first == second == wanted, (what, name)
            continue
        assert torch.equal(first, second), (what, name)
        assert _off(first, wanted) <= most, (what, name, _off(first, wanted))


ALL = tuple(cases.CRITERIA)
FEW = ("taylor", "flap", "obs", "hap", "gate-obd", "enhanced")


@pytest.mark.parametrize(
    ("kind", "batches", "criteria"),
    [
        ("conv", 1, ALL),
        ("conv", 3, ALL),
        ("conv", 4, ("obs",)),
        ("lstm", 3, ALL),
        ("vit", 3, FEW),
        *(
            pytest.param(kind, batches, ALL, marks=pytest.mark.slow)
            for kind, batches in (("vit", 1), ("vit", 4), ("lstm", 1), ("conv", 5))
        ),
    ],
)
def test_criteria_give_the_scores_of_one_process(
    pair: Ranks, kind: str, batches: int, criteria: tuple[str, ...]
) -> None:
    """Of three batches rank 1 looks at one, and of one it looks at none."""
    one, two = cases.scores_of_all(kind, batches, criteria), pair(cases.scores_of_all, kind, batches, criteria)
    for criterion in criteria:
        _check([found[criterion] for found in two], one[criterion], _SAME, (criterion, kind, batches))
        state = one[criterion].pop("generator")
        assert isinstance(state, Tensor)
        assert torch.equal(two[0][criterion]["generator"], state), criterion  # later random numbers are the same too


def test_ranges_are_those_of_the_first_batch(pair: Ranks) -> None:
    _check(pair(cases.observed, 3.0), cases.observed(3.0), _SAME, "observed")


def test_spikes_are_counted_over_processes(pair: Ranks) -> None:
    one, two = cases.spikes_of_all(3), pair(cases.spikes_of_all, 3)
    for criterion in cases.SPIKES:
        _check([found[criterion] for found in two], one[criterion], _SAME, criterion)


@pytest.mark.parametrize(
    ("kind", "methods"),
    [
        ("conv", ("wanda-weights", "snip", "grasp", "sparsegpt", "magnitude", "random-weights")),
        ("lstm", ("wanda-weights", "snip", "grasp", "sparsegpt")),
        pytest.param("vit", cases.WEIGHTS, marks=pytest.mark.slow),
        pytest.param("conv", ("synflow",), marks=pytest.mark.slow),
    ],
)
def test_the_same_single_weights_are_masked(pair: Ranks, kind: str, methods: tuple[str, ...]) -> None:
    one, two = cases.masked_by_all(kind, 3, methods), pair(cases.masked_by_all, kind, 3, methods)
    for method in methods:
        _check([found[method] for found in two], one[method], _REPAIRED, method)
        for name, wanted in one[method].items():
            assert torch.equal(two[0][method][name] == 0, wanted == 0), (method, name)


Jobs = list[tuple[str, str, dict[str, Any]]]
JOBS: Jobs = [
    ("conv", "reconstruct", {"batches": 1}),
    ("conv", "reconstruct", {"batches": 3}),
    ("vit", "reconstruct", {"batches": 3}),
    ("lstm", "reconstruct", {"batches": 3}),
    ("conv", "auto", {"batches": 5}),
    ("conv", "ls", {"scope": "measured", "batches": 5}),
    ("conv", "ls", {"retention": "epsilon", "epsilon": 0.1, "ratio": 0.5}),
]
SLOW: Jobs = [
    *((kind, repair, {"batches": 3}) for kind in ("conv", "vit", "lstm") for repair in ("bias", "ls")),
    *((kind, "auto", {"batches": 5}) for kind in ("vit", "lstm")),
    ("vit", "reconstruct", {"batches": 1}),
    ("conv", "ls", {"method": "obs", "batches": 3}),
    ("vit", "ls", {"method": "hap", "batches": 2}),
    ("vit", "ls", {"params": 0.6, "ratio": 0.5}),
    ("vit", "ls", {"schedule": "linear", "steps": 2}),
]


@pytest.mark.parametrize("jobs", [JOBS, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_the_same_channels_are_removed_and_the_rest_repaired_alike(pair: Ranks, jobs: Jobs) -> None:
    two = pair(cases.outcomes, jobs)
    for number, (job, one) in enumerate(zip(jobs, cases.outcomes(jobs), strict=True)):
        first, second = two[0][number], two[1][number]
        assert first[1] == second[1] == one[1], job
        assert any(edit[1] for edit in one[1]), job
        _check([first[0], second[0]], one[0], _REPAIRED, job)
        for key in ("compensated", "recalibrated", "achieved"):
            assert first[2][key] == second[2][key] == one[2][key], (job, key)
        assert first[2]["verify_error"] == second[2]["verify_error"] < 1e-12
