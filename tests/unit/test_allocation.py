"""Scopes, ratios by layer and targets."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import prunecli
from prunecli.errors import MethodError
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.allocation import Allocation, Demand, allocate, signature
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.selection import with_scope
from prunecli.methods.structural import prune_structural
from prunecli.surgery.groups import ChannelGroup, Member
from tests.unit.networks import Plain, Residual, example

WIDE = (32, 64, 96, 128)


def _group(name: str, units: int, reader: str) -> ChannelGroup:
    index = torch.arange(units)[:, None]
    members = (Member(name, "weight", 0, index, "producer"), Member(reader, "weight", 1, index, "consumer"))
    return ChannelGroup(name, units, units, members)


def _blocks() -> list[ChannelGroup]:
    return [
        group
        for block in range(3)
        for group in (
            _group(f"blocks.{block}.fc1", 256, f"blocks.{block}.fc2"),
            _group(f"blocks.{block}.value", 64, f"blocks.{block}.proj"),
        )
    ]


def _scores(groups: list[ChannelGroup]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        # Layers of one kind have quite another spread than those of the other.
        g.name: torch.rand(g.units, generator=generator, dtype=torch.float64) ** (1 if "fc1" in g.name else 6)
        for g in groups
    }


def test_isomorphic_is_one_independent_ranking_for_each_kind() -> None:
    groups = _blocks()
    scores, params = _scores(groups), StructuralParams(ratio=0.4, scope="isomorphic")
    allocation = allocate(groups, scores, params)
    for kind in ("fc1", "value"):
        alike = [group for group in groups if group.name.endswith(kind)]
        alone = allocate(alike, scores, StructuralParams(ratio=0.4, scope="global"))
        assert all(torch.equal(allocation.keep[g.name], alone.keep[g.name]) for g in alike)
        assert alone.achieved == pytest.approx(0.4, abs=0.02)
    mixed = allocate(groups, scores, StructuralParams(ratio=0.4, scope="global"))
    assert any(len(mixed.keep[g.name]) != len(allocation.keep[g.name]) for g in groups)


def test_a_signature_ignores_the_block_and_the_width_but_not_the_place() -> None:
    one, two = _group("blocks.0.fc1", 8, "blocks.0.fc2"), _group("blocks.11.fc1", 16, "blocks.11.fc2")
    assert signature(one) == signature(two) != signature(_group("blocks.0.fc1", 8, "blocks.0.gate"))


def test_raw_scores_are_ranked_as_they_are() -> None:
    groups = [_group("a", 64, "b"), _group("c", 64, "d")]
    scores = {"a": torch.rand(64, dtype=torch.float64) + 1, "c": torch.rand(64, dtype=torch.float64) + 5}
    raw = allocate(groups, scores, StructuralParams(ratio=0.4, normalise="none", max_ratio=1.0))
    assert len(raw.keep["c"]) == 64 and len(raw.keep["a"]) < 20
    scaled = allocate(groups, scores, StructuralParams(ratio=0.4, max_ratio=1.0))
    assert len(scaled.keep["c"]) < 64


def test_auto_is_isomorphic_where_there_is_attention_or_layer_normalisation() -> None:
    transformer = nn.TransformerEncoderLayer(16, 2)
    assert with_scope(transformer, StructuralParams()).scope == "isomorphic"
    assert with_scope(nn.Sequential(nn.LayerNorm(4)), StructuralParams()).scope == "isomorphic"
    assert with_scope(Plain(), StructuralParams()).scope == "global"
    assert with_scope(transformer, StructuralParams(scope="local")).scope == "local"


def test_ratios_count_against_the_dense_width() -> None:
    group = _group("a", 48, "b")  # 64 before
    scores = {"a": torch.rand(48, dtype=torch.float64)}
    for scope in ("local", "global"):
        params = StructuralParams(scope=scope, max_ratio=0.75)  # type: ignore[arg-type]
        allocation = allocate([group], scores, params, Demand(0.5, dense={"a": 64}))
        assert len(allocation.keep["a"]) == 32 and allocation.achieved == 0.5
        most = allocate([group], scores, params, Demand(1.0, dense={"a": 64}))
        assert len(most.keep["a"]) == 16  # the bounds are those of the dense width too


def test_ratios_by_layer() -> None:
    model = Plain(WIDE).eval()
    result = prunecli.prune(model, "l1", example_inputs=example(), layer_ratio={"body.3": 0.5, "body.[6]": 0.25})
    widths = {edit.group: edit.width_after for edit in result.report.edits}
    assert widths == {"body.3": 32, "body.6": 72}
    assert result.report.scope == "by name"
    reasons = {entry.name: entry.reason for entry in result.report.untouched}
    assert reasons["body.9"] == "not named in layer_ratio"
    assert result.report.requested == pytest.approx((32 + 24) / (64 + 96 + 128), abs=1e-6)
    zero = prunecli.prune(model, "l1", example_inputs=example(), layer_ratio={"body.3": 0.5, "body.6": 0.0})
    assert {entry.name: entry.reason for entry in zero.report.untouched}["body.6"] == "its own ratio is 0"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layer_ratio": {"bodi.3": 0.5}}, r"unknown layer pattern 'bodi.3': did you mean .*'body.3'"),
        ({"layer_ratio": {"body.*": 0.5, "body.3": 0.1}}, r"'body.\*' and 'body.3' both match body.3"),
        ({"layer_ratio": {"body.0": 0.5}}, r"'body.0' matches nothing that can shrink; body.0: first layer"),
        ({"layer_ratio": {"head": 0.5}}, r"'head' matches nothing that can shrink; head.fc: output layer"),
        ({"layer_ratio": {"body.4": 0.5}}, r"'body.4' shares its channels with body.3; use that name"),
        ({"layer_ratio": {"body.3": 0.5}, "keep": ["body.3"]}, r"only layers that keep holds"),
        ({"layer_ratio": {"body.3": 1.5}}, r"layer_ratio\['body.3'\]=1.5: has to be less than 1"),
        ({"params": 0.5, "macs": 0.5}, r"params=0.5 and macs=0.5 say how much"),
        ({"ratio": 0.3, "latency": 0.5}, r"ratio=0.3 and latency=0.5"),
        ({"params": 0.5, "layer_ratio": {"body.3": 0.5}}, r"params=0.5 and layer_ratio say"),
        ({"params": 0.01}, r"params=0.01 cannot be reached: 0.\d+ of the parameters is the least"),
        ({"macs": 1.0}, r"macs=1.0: has to be less than 1"),
        ({"ratio": 1.0}, r"ratio=1.0: has to be less than 1"),
        ({"ratio": -0.1}, r"ratio=-0.1: has to be greater than 0"),
    ],
)
def test_impossible_parameters_give_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message) as caught:
        prunecli.prune(Plain(WIDE).eval(), "l1", example_inputs=example(), **params)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_targets_are_met(share: float, scope: str) -> None:
    model = Plain((32, 128, 256, 128)).eval()
    for kind, figure in (
        ("params", parameter_count),
        ("macs", lambda network: count_macs(network, example()).total),
    ):
        result = prunecli.prune(model, "l1", example_inputs=example(), scope=scope, **{kind: share})
        reached = figure(result.model) / figure(model)
        assert reached == pytest.approx(share, abs=0.025)
        target = result.report.target
        assert target is not None and target.achieved == pytest.approx(reached) and target.requested == share


def test_a_latency_target_is_measured() -> None:
    model = Plain((32, 64, 64, 64)).eval()
    large = torch.randn(4, 3, 48, 48)
    result = prunecli.prune(model, "l1", example_inputs=large, latency=0.6)
    assert result.report.target is not None and result.report.target.kind == "latency"
    assert 0.2 < result.report.achieved < 0.95
    assert result.report.macs_after.total < 0.75 * result.report.macs_before.total


def test_the_report_keeps_what_was_asked() -> None:
    result = prunecli.prune(Plain(WIDE).eval(), "l1", example_inputs=example(), params=0.6)
    plain = result.report.to_dict()
    assert plain["target"]["kind"] == "params" and plain["target"]["requested"] == 0.6
    assert result.manifest.history[-1].figures["params_asked"] == 0.6
    assert result.manifest.history[-1].settings["params"]["params"] == 0.6  # type: ignore[index,call-overload]


def test_residual_groups_have_one_ratio() -> None:
    params = StructuralParams(scope="isomorphic", ratio=0.5)
    request = PruneRequest(method="l1", params=params, example_inputs=example())
    outcome = prune_structural(Residual().eval(), request).report
    assert outcome.achieved == pytest.approx(0.5, abs=0.05) and outcome.scope == "isomorphic"


def test_equal_scores_are_dealt_out_evenly() -> None:
    groups = [_group("a", 64, "b"), _group("c", 64, "d"), _group("e", 64, "f")]
    scores = {"a": torch.zeros(64).double(), "c": torch.zeros(64).double(), "e": torch.rand(64).double() + 1}
    allocation = allocate(groups, scores, StructuralParams(ratio=1 / 3))
    assert [len(allocation.keep[name]) for name in "ace"] == [32, 32, 64]


@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(-5, 1e6), min_size=1, max_size=30), min_size=1),
    st.randoms(),
)
def test_a_histogram_counts_every_unit_once_on_its_side(values: dict[str, list[float]], chance: random.Random) -> None:
    scores = {name: torch.tensor(row, dtype=torch.float64) for name, row in values.items()}
    keep = {
        name: torch.tensor(sorted(chance.sample(range(len(row)), chance.randint(0, len(row)))), dtype=torch.int64)
        for name, row in values.items()
    }
    histogram = Allocation(keep, {}, 0.5, 0.5).score_histogram(scores)
    edges = histogram["edges"]
    assert edges == sorted(edges) and len(edges) == 21
    for name, row in scores.items():
        counts = histogram["groups"][name]
        assert sum(counts["kept"]) == len(keep[name]) and sum(counts["removed"]) == len(row) - len(keep[name])


def test_a_histogram_puts_low_scores_low_whatever_the_size_of_a_groups_scores() -> None:
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([1e6, 2e6, 3e6])}
    keep = {name: torch.tensor([2]) for name in scores}
    histogram = Allocation(keep, {}, 0.5, 0.5).score_histogram(scores)
    assert histogram["groups"]["a"] == histogram["groups"]["b"]
    assert histogram["groups"]["a"]["removed"][0] == 1 and histogram["groups"]["a"]["kept"][-1] == 1
    assert histogram["edges"][0] == 0.5
    assert Allocation(keep, {}, 0.5, 0.5).score_histogram({"a": torch.tensor([math.nan] * 3)}) == {}


def test_evenly_spread_scores_fill_all_bins_alike() -> None:
    scores = torch.arange(1, 2001, dtype=torch.float64)
    counts = Allocation({"a": torch.arange(1000)}, {}, 0.5, 0.5).score_histogram({"a": scores})["groups"]["a"]
    assert counts["kept"][:9] == [pytest.approx(100, abs=2)] * 9 and sum(counts["kept"][11:]) == 0
    assert all(95 <= kept + removed <= 115 for kept, removed in zip(counts["kept"], counts["removed"], strict=True))
