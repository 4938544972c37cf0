"""Processes that differ stop, before anything is removed; what one finds out alone, all know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import planted
from tests.ranks.processes import Failed, Ranks


def _errors(pair: Ranks, function: Callable[..., Any], *arguments: Any) -> list[str]:
    """What all of them raise, which has to be of one kind."""
    with pytest.raises(Failed) as failed:
        pair(function, *arguments)
    assert len({type(error) for error in failed.value.by_rank}) == 1, failed.value.by_rank
    return [f"{type(error).__name__}: {error}" for error in failed.value.by_rank]


@pytest.mark.parametrize(
    ("function", "arguments", "part"),
    [
        (planted.pruned_with, ("rank_dependent",), "the scores of hidden differ between rank 0 and rank 1"),
        (planted.plan_that_differs, (), "the channels that are to stay of second differ between rank 0 and rank 1"),
        (planted.plan_without_a_layer, (), "the channels that are to stay of second differ"),
        (planted.allocated_otherwise, (), "the channels that are to stay of inner.0 differ"),
        (planted.repaired_otherwise, (), "the weights of first.0.weight differ"),
        (planted.masks_that_differ, (), "the scores of first.0.weight differ"),
    ],
)
def test_a_difference_ends_all_and_names_the_first_layer(
    pair: Ranks, function: Callable[..., Any], arguments: tuple[Any, ...], part: str
) -> None:
    for message in _errors(pair, function, *arguments):
        assert message.startswith("RanksDiffer: ") and part in message and "\n" not in message


def test_rounding_is_no_difference_and_all_go_on_with_the_numbers_of_the_first(pair: Ranks) -> None:
    for two in (pair(planted.pruned_with, "rounded"), pair(planted.repaired_with_other_rounding)):
        (first, kept), (second, kept_too) = two
        assert kept == kept_too
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_criterion_that_knows_nothing_of_processes_stays_right(pair: Ranks) -> None:
    weights, kept = planted.pruned_with("unaware")
    for found, kept_too in pair(planted.pruned_with, "unaware"):
        assert kept_too == kept
        assert all(torch.allclose(found[name], weights[name], rtol=1e-6) for name in weights)


def test_the_proof_of_the_first_process_counts_for_all(pair: Ranks) -> None:
    assert _errors(pair, planted.proof_that_fails, 0) == ["VerificationError: wrong on rank 0"] * 2
    first, second = pair(planted.proof_that_fails, 1)  # it is not run there
    assert first == second


def test_the_first_process_measures_time_and_decides_by_it(pair: Ranks) -> None:
    (first, kept), (second, kept_too) = pair(planted.latency_target)
    assert kept == kept_too and any(units for _, units in kept)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_items_in_turns_are_those_of_one_process_and_so_is_their_first_error(pair: Ranks) -> None:
    whole = [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert pair(planted.turns, None) == [whole, whole]
    for fails in (0, 1, 4):
        assert _errors(pair, planted.turns, fails) == [f"MethodError: item {fails}"] * 2


@pytest.mark.parametrize("kind", ["conv", "vit", "lstm"])
def test_checkpoints_are_equal_byte_by_byte(pair: Ranks, tmp_path: Path, kind: str) -> None:
    first, second = pair(planted.checkpoint, tmp_path, kind)
    assert first == second


@pytest.mark.parametrize("method", ["sca", "unstructured"])
def test_methods_that_train_choose_the_same(pair: Ranks, method: str) -> None:
    (opened, figures, state, weights), (opened_too, figures_too, state_too, weights_too) = pair(planted.trained, method)
    assert opened == opened_too and figures == figures_too
    assert repr(state) == repr(state_too)
    assert all(torch.equal(weights[name], weights_too[name]) for name in weights)


def test_a_batch_that_stands_in_for_none_is_not_watched(pair: Ranks) -> None:
    assert pair(planted.stood_in_for, 1) == [[[("layer", [2.0, 3.0], 2)], [("layer", [4.0, 3.0], 2)]]] * 2
    assert pair(planted.stood_in_for, 2) == [[[("layer", [4.0, 33.0], 4)], [("layer", [8.0, 33.0], 4)]]] * 2
