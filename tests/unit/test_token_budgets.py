"""From budgets to selections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from prunecli.checkpoint.manifest import TokenSelection
from prunecli.errors import MethodError
from prunecli.measure.intervals import accuracy_interval, mean_recall_interval
from prunecli.methods.params import TokenParams
from prunecli.methods.token import at_random, plan_selection
from prunecli.tokens.towers import Tower

BLOCKS = tuple(f"blocks.{index}" for index in range(12))
VIT = Tower("", BLOCKS, prefix=1, by_class_token=True, rope=False, relative_bias=False)
EVA = Tower("", BLOCKS, prefix=1, by_class_token=False, rope=True, relative_bias=False)
B16, B32 = 197, 50


def planned(total: int = B16, tower: Tower = VIT, **options: Any) -> TokenSelection:
    return plan_selection(TokenParams(**options), tower, total)


def test_every_way_to_ask_for_61_of_197() -> None:
    for options in ({"keep_share": 0.31}, {"tokens": 61}, {"k_anchors": 10, "top_m": 50}):
        stage = planned(**options).stages[0]
        assert (stage.block, stage.kept) == (1, 60)
        assert stage.anchors == (10 if "top_m" in options else 30)
    assert planned(tokens=61, selector="evit").stages[0].kept == 59  # the fused token is the 61st
    assert planned().stages[0].kept == 97  # about half of 197, without the class token


def test_shares_of_stages_are_of_what_is_left() -> None:
    stages = planned(stages=("3:0.7", "6:0.7,9:0.7")).stages
    assert [(stage.block, stage.kept) for stage in stages] == [(3, 137), (6, 96), (9, 67)]
    assert at_random(planned(stages=("3:0.7",)), VIT, 4).model_dump()["stages"][0] == {
        "block": 3,
        "kept": 137,
        "anchors": 0,
    }


def test_merging_leaves_what_is_asked_or_as_much_as_can_be() -> None:
    assert planned(selector="tome", merge=13).merged == 13
    assert planned(selector="tome", keep_share=0.31).merged == 12  # 136 of them in 11 blocks
    assert planned(66, selector="tome", keep_share=0.05, block=11).merged == 32
    random = at_random(planned(selector="tome", merge=13), VIT, 0)
    assert [stage.kept for stage in random.stages[:3]] == [183, 170, 157] and random.inside
    assert random.stages[-1].kept == 196 - 11 * 13


def test_a_speed_up_is_reached_with_as_many_tokens_as_can_be() -> None:
    def speedup_of(selection: TokenSelection) -> float:
        return 197 / (selection.stages[0].kept + 1)

    kept = plan_selection(TokenParams(speedup=2.0), VIT, B16, 0, speedup_of).stages[0].kept
    assert 93 <= kept <= 97
    with pytest.raises(MethodError, match="--speedup 100 cannot be reached: 2 patch tokens from block 1"):
        plan_selection(TokenParams(speedup=100.0), VIT, B16, 0, speedup_of)
    with_anchors = plan_selection(TokenParams(speedup=2.0, k_anchors=10), VIT, B16, 0, speedup_of).stages[0]
    assert with_anchors.anchors == 10 and 93 <= with_anchors.kept <= 97
    with pytest.raises(MethodError, match="--speedup 4 cannot be reached: 60 patch tokens"):
        plan_selection(TokenParams(speedup=4.0, k_anchors=60), VIT, B16, 0, speedup_of)


@pytest.mark.parametrize(
    ("tokens", "options", "said"),
    [
        (B32, {"k_anchors": 10, "top_m": 50}, "61 tokens are to stay, more than the 50 there are"),
        (B32, {"tokens": 50}, "as many as there are, so nothing would be pruned"),
        (B16, {"keep_share": 1.0}, "nothing would be pruned"),
        (B16, {"tokens": 2}, "which leaves 1 of the image; ask for at least 3"),
        (B16, {"keep_share": 0.5, "tokens": 61}, "--keep-share and --tokens are budgets that exclude each other"),
        (B16, {"top_m": 50}, "--top-m goes with --k-anchors"),
        (B16, {"merge": 13}, "--merge is for --selector tome, not anchor"),
        (B16, {"selector": "tome", "stages": ("3:0.7",)}, "--selector tome merges in every block"),
        (B16, {"selector": "cls", "k_anchors": 5}, "--k-anchors: --selector cls does not use it; leave it out"),
        (B16, {"selector": "diversity", "alpha": 0.1}, "--alpha: --selector diversity does not use it"),
        (B16, {"selector": "random", "to_anchors": True}, "--to-anchors: --selector random does not use it"),
        (B16, {"selector": "tome", "inside": True}, "--inside: --selector tome does not use it"),
        (B16, {"stages": ("3:0.7",), "block": 2}, "--block: --stages names its blocks"),
        (B16, {"stages": ("3",)}, "--stages 3: write it as BLOCK:SHARE"),
        (B16, {"stages": ("3:1.2",)}, "a share lies between 0 and 1"),
        (B16, {"stages": ("6:0.7", "3:0.7")}, "give each once, in ascending order"),
        (B16, {"tokens": 61, "k_anchors": 70}, "70 anchors of 60 tokens"),
        (B16, {"tokens": 61, "block": 12}, "of 0 to 11"),
    ],
)
def test_what_cannot_be_is_one_line(tokens: int, options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said) as caught:
        planned(tokens, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("selector", ["evit", "tome"])
def test_tokens_without_a_position_are_refused_where_positions_count(selector: str) -> None:
    with pytest.raises(MethodError, match="this network has rotary embeddings"):
        planned(tower=EVA, selector=selector)


def test_intervals_of_accuracies() -> None:
    low, high = accuracy_interval(100 * 1.5 / 24, 24)  # captions have fractions of images
    assert accuracy_interval(100 / 24, 24)[0] < low < 100 * 1.5 / 24 < high < accuracy_interval(200 / 24, 24)[1]
    low, high = accuracy_interval(80.0, 500)
    z, n, p = float(norm.ppf(0.975)), 500, 0.8
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert low == pytest.approx(100 * (middle - half / (1 + z * z / n)), abs=0.01)
    assert high == pytest.approx(100 * (middle + half / (1 + z * z / n)), abs=0.01)


def test_the_interval_of_mean_recall_holds_what_it_says() -> None:
    """Counted over many drawn sets, with classes that have few images and classes without mistakes."""
    low, high = mean_recall_interval([90, 10, 0], [100, 100, 0])  # a class without images counts nowhere
    assert low == pytest.approx(50 - 196 * (2 * 0.09 / 100) ** 0.5 / 2, abs=0.4)
    assert high == pytest.approx(100 - low, abs=0.5)
    low, high = mean_recall_interval([50] * 10, [50] * 10)
    assert 98.5 < low < 99.5 and high == 100
    low, high = mean_recall_interval([1, 0, 1, 1], [1] * 4)
    assert low < 60 and high > 90
    generator = np.random.default_rng(0)
    recalls, images = generator.uniform(0.5, 1, 12), np.array([5, 8, 20, 40] * 3)
    recalls[:2] = 1.0
    inside = 0
    for _ in range(1000):
        low, high = mean_recall_interval(generator.binomial(images, recalls).tolist(), images.tolist())
        inside += low <= 100 * recalls.mean() <= high
    assert 935 <= inside <= 990
