"""Scores, and how many channels stay where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.criteria.base import Calibration
from prunecli.criteria.bn_scale import bn_scale
from prunecli.criteria.magnitude import l1, l2
from prunecli.criteria.random import random
from prunecli.criteria.weights.base import WeightMethod
from prunecli.errors import MethodError
from prunecli.methods.allocation import allocate
from prunecli.methods.index import METHODS
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Flattened, Grouped, Plain, example

SEED = torch.Generator()
GIVEN = Calibration()


def test_l1_sums_the_filters_and_the_columns_that_read_them() -> None:
    model = Plain()
    group = trace(model, example()).group("body.3")
    expected = model.body[3].weight.abs().sum((1, 2, 3)) + model.body[6].weight.abs().sum((0, 2, 3))
    assert torch.allclose(l1(model, [group], GIVEN)["body.3"], expected.double(), rtol=1e-6)


def test_l2_adds_norms() -> None:
    model = Plain()
    group = trace(model, example()).group("body.3")
    expected = model.body[3].weight.pow(2).sum((1, 2, 3)).sqrt() + model.body[6].weight.pow(2).sum((0, 2, 3)).sqrt()
    assert torch.allclose(l2(model, [group], GIVEN)["body.3"], expected.double(), rtol=1e-6)


def test_scores_of_flattened_and_grouped_channels_cover_all_their_positions() -> None:
    model = Flattened()
    group = trace(model, example()).group("a")
    expected = model.a.weight.abs().sum((1, 2, 3)) + model.fc1.weight.abs().reshape(32, 16, 16).sum((0, 2))
    assert torch.allclose(l1(model, [group], GIVEN)["a"], expected.double(), rtol=1e-6)
    grouped = Grouped()
    unit = l1(grouped, [trace(grouped, example()).group("a")], GIVEN)["a"]
    filters = grouped.a.weight.abs().sum((1, 2, 3)).reshape(4, 8).sum(0)
    columns = grouped.g.weight.abs().sum((0, 2, 3))
    assert torch.allclose(unit, (filters + columns).double(), rtol=1e-6)


def test_bn_scale_is_gamma_and_says_where_there_is_none() -> None:
    model = Plain()
    torch.nn.init.uniform_(model.body[4].weight)
    scores = bn_scale(model, [trace(model, example()).group("body.3")], GIVEN)
    assert torch.allclose(scores["body.3"], model.body[4].weight.abs().double())
    flat = Flattened()
    assert "no batch normalisation" in bn_scale(flat, trace(flat, example()).groups, GIVEN)["a"]


def test_random_repeats_with_its_seed() -> None:
    model = Plain()
    groups = trace(model, example()).groups
    first, again, other = (random(model, groups, Calibration(torch.Generator().manual_seed(s))) for s in (1, 1, 2))
    assert torch.equal(first["body.3"], again["body.3"]) and not torch.equal(first["body.3"], other["body.3"])


def _groups(widths: list[int], per_unit: int = 1) -> list[ChannelGroup]:
    return [ChannelGroup(f"g{i}", width // per_unit, width, ()) for i, width in enumerate(widths)]


@settings(max_examples=150, deadline=None)
@given(
    widths=st.lists(st.sampled_from([8, 16, 24, 48, 64, 100, 256]), min_size=1, max_size=6),
    ratio=st.floats(0.01, 0.95),
    scope=st.sampled_from(["local", "global", "isomorphic"]),
    round_to=st.sampled_from([0, 1, 4, 8, 16]),
    max_ratio=st.floats(0.1, 1.0),
    seed=st.integers(0, 99),
)
def test_allocation_keeps_its_bounds(
    widths: list[int], ratio: float, scope: str, round_to: int, max_ratio: float, seed: int
) -> None:
    params = StructuralParams(ratio=ratio, scope=scope, round_to=round_to, max_ratio=max_ratio, min_width=4)  # type: ignore[arg-type]
    groups = _groups(widths)
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.units, generator=generator, dtype=torch.float64) for g in groups}
    allocation = allocate(groups, scores, params)
    for group in groups:
        kept = allocation.keep[group.name]
        assert len(kept) >= min(group.units, max(4, (1 - max_ratio) * group.units - 1e-6))
        assert torch.equal(kept, torch.unique(kept))
        if round_to > 1 and len(kept) not in (group.units,):
            assert len(kept) % round_to == 0
        if len(kept) == group.units:
            assert group.name in allocation.held_back  # a group left whole is always reported
        dropped = torch.ones(group.units, dtype=torch.bool)
        dropped[kept] = False
        if dropped.any():
            assert scores[group.name][dropped].max() <= scores[group.name][kept].min()
    total = sum(len(allocation.keep[g.name]) for g in groups)
    assert allocation.achieved == pytest.approx(1 - total / sum(widths))


@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_ratio_is_met_where_nothing_prevents_it(scope: str) -> None:
    groups = _groups([64, 128, 256])
    scores = {g.name: torch.rand(g.units, generator=SEED, dtype=torch.float64) for g in groups}
    allocation = allocate(groups, scores, StructuralParams(ratio=0.5, scope=scope))  # type: ignore[arg-type]
    assert allocation.achieved == pytest.approx(0.5, abs=0.03)


def test_global_scores_are_compared_after_scaling_each_layer_by_its_mean() -> None:
    groups = _groups([64, 64])
    scores = {"g0": torch.rand(64, generator=SEED).double() + 1}
    scores["g1"] = scores["g0"] * 1000
    allocation = allocate(groups, scores, StructuralParams(ratio=0.5))
    assert len(allocation.keep["g0"]) == len(allocation.keep["g1"])


def test_grouped_units_are_rounded_in_channels() -> None:
    groups = _groups([64], per_unit=4)
    allocation = allocate(groups, {"g0": torch.arange(16).double()}, StructuralParams(ratio=0.4, scope="local"))
    assert len(allocation.keep["g0"]) * 4 % 8 == 0


def _request(params: StructuralParams | None = None, **options: Any) -> PruneRequest:
    return PruneRequest(method="l1", params=params or StructuralParams(), example_inputs=example(), **options)


def test_keep_patterns_hold_layers_and_a_pattern_without_a_match_is_an_error() -> None:
    model = Plain().eval()
    outcome = prune_structural(model, _request(keep=["body.3"])).report
    assert [edit.group for edit in outcome.edits] == ["body.6"]
    assert any(entry.reason == "kept by pattern 'body.3'" for entry in outcome.untouched)
    for everything in ("body", "*"):
        with pytest.raises(MethodError, match="nothing would be removed"):
            prune_structural(model, _request(keep=[everything]))
    with pytest.raises(MethodError, match=r"unknown layer pattern 'bodi.3'.*body.3"):
        prune_structural(model, _request(keep=["bodi.3"]))


def test_a_width_that_cannot_shrink_is_an_error_with_its_layer() -> None:
    with pytest.raises(MethodError, match=r"nothing would be removed.*body.3.*cannot shrink"):
        prune_structural(Plain((8, 16, 16)).eval(), _request(StructuralParams(round_to=16)))


def test_the_index_is_complete_and_torch_free_descriptions_match_code() -> None:
    for name in METHODS.names:
        spec = METHODS.load(name)
        assert spec.name == name and spec.summary.endswith(".")
        assert callable(spec.load()) or isinstance(spec.load(), WeightMethod)
    with pytest.raises(MethodError, match="did you mean 'l2' or 'l1'"):
        get_method("l3")
