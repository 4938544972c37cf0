"""The parts of `enhanced` against loops over stored values, and properties of fused ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from prunecli.criteria.ablation import Ablation, Unit
from prunecli.criteria.activity import Activity
from prunecli.criteria.base import Calibration
from prunecli.criteria.enhanced import PARTS, enhanced
from prunecli.criteria.fusion import fused, learned_weights, units_to_ablate
from prunecli.criteria.gradient import gate_gradients
from prunecli.criteria.hessian import hap_estimate
from prunecli.criteria.parts import gradient_part, magnitude_part, observed_parts
from prunecli.criteria.ranks import ranks, reliability
from prunecli.criteria.samples import SomeSamples, half_of
from prunecli.errors import MethodError
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Plain, example
from tests.unit.recurrent import Words, tokens, words_groups

_FEW = {"min_probes": 4, "max_probes": 8}


def _network(kind: str) -> tuple[nn.Module, list[ChannelGroup], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(5)
    if kind == "words":
        model = Words().eval()
        return model, words_groups(model)[1:], tokens(4, samples=6)
    model = Plain((8, 12, 8)).eval()
    generator = torch.Generator().manual_seed(3)
    data = [
        (torch.randn(4, 3, 16, 16, generator=generator), torch.randint(0, 10, (4,), generator=generator))
        for _ in range(4)
    ]
    return model, list(trace(model, example()).groups), data


def _all_samples(data: Any, **options: Any) -> SomeSamples:
    return SomeSamples.of(Calibration(batches=data, options=options), 0, "enhanced")


def _by_loop(values: Tensor) -> Tensor:
    """Ranks by counting what is lower, and half of what is equal."""
    found = [(values < value).sum() + ((values == value).sum() - 1) / 2 + 0.5 for value in values]
    return torch.stack(found).double() / len(values)


scores_of_units = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@given(scores_of_units)
def test_ranks_share_ties(values: list[int]) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(ranks(scores), _by_loop(scores))


@st.composite
def members(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, float]]:
    units = draw(st.integers(1, 8))
    names = "abcd"[: draw(st.integers(1, 4))]
    values = st.lists(st.integers(-5, 5), min_size=units, max_size=units)
    scores = {name: torch.tensor(draw(values), dtype=torch.float64) for name in names}
    return scores, {name: draw(st.sampled_from([0.0, 0.25, 1.0, 2.0])) for name in names}


@given(members(), st.randoms(use_true_random=False))
def test_fusion_does_not_depend_on_the_order_of_units_or_members(drawn: Any, random: Any) -> None:
    scores, weights = drawn
    wanted = fused(scores, weights)
    order = list(range(len(wanted)))
    random.shuffle(order)
    assert torch.equal(fused({name: own[order] for name, own in scores.items()}, weights), wanted[order])
    assert torch.allclose(fused(dict(reversed(scores.items())), weights), wanted, atol=1e-12)


@given(members(), st.sampled_from([torch.exp, lambda x: 3 * x - 100, torch.arctan, lambda x: x**3]))
def test_fusion_counts_orders_alone(drawn: Any, increasing: Any) -> None:
    scores, weights = drawn
    changed = {name: increasing(own) for name, own in scores.items()}
    assert torch.equal(fused(changed, weights), fused(scores, weights))


@given(members(), st.floats(0.1, 10))
def test_fusion_is_a_weighted_mean_of_ranks(drawn: Any, factor: float) -> None:
    scores, weights = drawn
    found, total = fused(scores, weights), sum(weights.values())
    own = weights if total else dict.fromkeys(weights, 1.0)
    wanted = sum(own[name] * _by_loop(values) for name, values in scores.items()) / sum(own.values())  # type: ignore[operator]
    assert torch.allclose(found, wanted)
    assert bool(((found > 0) & (found < 1)).all())
    assert torch.allclose(fused(scores, {name: factor * weight for name, weight in weights.items()}), found)
    alike = [
        (a, b) for a, b in itertools.combinations(range(len(found)), 2) if all(s[a] == s[b] for s in scores.values())
    ]
    assert all(abs(float(found[a] - found[b])) < 1e-12 for a, b in alike)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 3))
def test_learned_weights_find_the_member_that_orders_as_ablation_does(seed: int, right: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = {name: {"g": torch.rand(40, generator=generator, dtype=torch.float64)} for name in "abcd"}
    best = "abcd"[right]
    units = [Unit("g", index) for index in torch.randperm(40, generator=generator)[:24].tolist()]
    rises = [float(parts[best]["g"][unit.index].exp()) for unit in units]
    weights = learned_weights(parts, units, rises)
    assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) >= 0
    assert max(weights, key=lambda name: weights[name]) == best and weights[best] > 0.7
    opposed = learned_weights({"a": parts[best]}, units, [-rise for rise in rises])
    assert opposed == {"a": 0.0}


def test_learned_weights_are_the_least_squares_within_groups() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = {name: {group: torch.rand(20, generator=generator, dtype=torch.float64) for group in "gh"} for name in "ab"}
    units = [Unit("g", index) for index in range(7)] + [Unit("h", index) for index in range(13, 20)]
    rises = [
        float(parts["a"][unit.group][unit.index] + 0.7 * parts["b"][unit.group][unit.index]) + (unit.group == "h")
        for unit in units
    ]

    def error(weights: tuple[float, float]) -> float:
        total = 0.0
        for group in "gh":
            own = [place for place, unit in enumerate(units) if unit.group == group]
            target = _by_loop(torch.tensor([rises[place] for place in own]))
            fitted = torch.zeros(len(own), dtype=torch.float64)
            for name, weight in zip("ab", weights, strict=True):
                fitted += weight * _by_loop(parts[name][group])[[units[place].index for place in own]]
            total += float((target - target.mean() - fitted + fitted.mean()).square().sum())
        return total

    found = learned_weights(parts, units, rises)
    grid = [place / 16 for place in range(25)]
    best = min(itertools.product(grid, grid), key=error)
    assert best[0] > 0 and best[1] > 0
    assert found["a"] == pytest.approx(best[0] / sum(best), abs=0.04)


def test_units_to_ablate_come_from_as_many_groups_as_have_four_each() -> None:
    _, groups, _ = _network("plain")
    units = units_to_ablate(groups, 16, torch.Generator().manual_seed(0))
    assert len(set(units)) == 16
    for name in {unit.group for unit in units}:
        assert sum(unit.group == name for unit in units) >= 4
    with pytest.raises(MethodError, match="--ablations 90: there are"):
        units_to_ablate(groups, 90, torch.Generator())


@pytest.mark.parametrize("kind", ["plain", "words"])
def test_magnitude_is_both_norms(kind: str) -> None:
    model, groups, _ = _network(kind)
    part = magnitude_part(model, groups)
    assert part.halves is None
    for group in groups:
        sides = []
        for role in ("producer", "consumer"):
            norm = torch.zeros(group.units, dtype=torch.float64)
            for member, unit in itertools.product(group.members, range(group.units)):
                value = model.get_parameter(member.name) if "running" not in member.tensor else torch.zeros(1)
                if member.role == role and value.dim() > 1:
                    norm[unit] += float(
                        value[(slice(None),) * member.dim + (member.index[unit],)].double().square().sum()
                    )
            sides.append(_by_loop(norm))
        assert torch.allclose(part.scores[group.name], sum(sides) / 2)  # type: ignore[arg-type]


def _statistics(columns: Tensor) -> dict[str, Tensor]:
    """Of stored values, shape (values, units), the histogram by numpy's rules from -limit to limit."""
    limit = max(1.0, float(columns.abs().max()))
    entropies, ranges = [], []
    for column in columns.T:
        counts = torch.histogram(column.double(), bins=32, range=(-limit, limit)).hist / len(column)
        entropies.append(float(torch.special.entr(counts).sum()) / math.log(32))
        ranges.append(float(torch.quantile(column, 0.95) - torch.quantile(column, 0.05)))
    return {
        "std": columns.std(0, correction=0),
        "rate": (columns != 0).double().mean(0),
        "entropy": torch.tensor(entropies, dtype=torch.float64),
        "range": torch.tensor(ranges, dtype=torch.float64),
    }


def test_statistics_of_parts_are_those_of_stored_values() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4000, 5, dtype=torch.float64).clamp(-2.5, 2.5) * torch.tensor([0.1, 0.3, 0.5, 1.0, 1.0])
    rows = torch.cat([rows.relu(), rows], dim=1)
    wanted, limit = _statistics(rows), float(rows.abs().max())
    found = sum((Activity.of(part, limit) for part in rows[900:].split(1300)), Activity.of(rows[:900], limit))
    assert torch.allclose(found.moments.std, wanted["std"]) and torch.equal(found.rate, wanted["rate"])
    assert torch.allclose(found.entropy(), wanted["entropy"], atol=2e-3)
    assert torch.allclose(found.range(), wanted["range"], atol=2 * limit / 128)


def test_spikes_have_binary_entropy() -> None:
    rows = (torch.rand(1000, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.0, 0.5, 0.1])).double()
    found = Activity.of(rows, 1.0)
    p = rows.mean(0)
    wanted = [0.0 if q in (0, 1) else -(q * math.log2(q) + (1 - q) * math.log2(1 - q)) for q in p.tolist()]
    assert found.entropy().tolist() == pytest.approx(wanted) and torch.equal(found.rate, p)


def test_observed_parts_are_those_of_stored_values() -> None:
    model, groups, data = _network("plain")
    group = next(group for group in groups if group.name == "body.3")
    stored: list[Tensor] = []
    hook = model.body[6].register_forward_pre_hook(lambda _, args: stored.append(args[0].detach()))  # type: ignore[index]
    with torch.no_grad():
        for inputs, _ in data:
            model(inputs)
    hook.remove()
    rows = torch.cat(stored).movedim(1, -1).flatten(0, -2).double()
    weight = model.body[6].weight.detach().double()  # type: ignore[index]
    strength = weight.square().sum((0, 2, 3)).sqrt()
    statistics = _statistics(rows)
    parts = observed_parts(model, [group], _all_samples(data), ["activation", "cooperative"], 0.01)
    wanted = [
        (0.5, statistics["std"] * strength),
        (0.2, statistics["rate"]),
        (0.2, statistics["entropy"]),
        (0.1, statistics["range"]),
    ]
    expected = sum(share * _by_loop(values) for share, values in wanted)
    assert torch.allclose(parts["activation"].scores["body.3"], expected, atol=0.03)  # type: ignore[arg-type]
    own = Activity.of(rows, max(1.0, float(rows[: 4 * 256].abs().max())))
    assert not torch.equal(ranks(own.entropy()), ranks(own.range()))
    wanted = [(0.5, own.moments.std * strength), (0.2, own.rate), (0.2, own.entropy()), (0.1, own.range())]
    expected = sum(share * _by_loop(values) for share, values in wanted)
    assert torch.allclose(parts["activation"].scores["body.3"], expected, atol=1e-9)  # type: ignore[arg-type]
    covariance = torch.cov(rows.T, correction=0)
    inverse = torch.linalg.inv(covariance + 0.01 * covariance.diagonal().mean() * torch.eye(12, dtype=torch.float64))
    assert torch.allclose(parts["cooperative"].scores["body.3"], strength / inverse.diagonal(), rtol=1e-6)


def test_halves_are_every_other_batch() -> None:
    model, groups, data = _network("plain")
    names = ["activation", "cooperative"]
    whole = observed_parts(model, groups, _all_samples(data), names, 0.01)
    for half in (0, 1):
        alone = observed_parts(model, groups, _all_samples(data[half::2]), names, 0.01)
        gradient = gradient_part(model, groups, _all_samples(data[half::2]))
        assert whole["activation"].halves and whole["cooperative"].halves
        own = gradient_part(model, groups, _all_samples(data)).halves
        assert own is not None
        for name in ("body.3", "body.6"):
            cooperation = whole["cooperative"].halves[half][name]
            assert torch.allclose(cooperation, alone["cooperative"].scores[name], rtol=1e-6)
            assert torch.allclose(own[half][name], gradient.scores[name])
    wanted = [sum(len(x) for x, _ in half_of(_all_samples(data), half).pairs()) for half in (0, 1)]
    assert wanted == [8, 8]


@pytest.mark.parametrize("kind", ["plain", "words"])
def test_the_gradient_part_is_size_steadiness_and_sign(kind: str) -> None:
    model, groups, data = _network(kind)
    part = gradient_part(model, groups, _all_samples(data))
    for group in groups:
        rows = torch.cat([gates[group.name] for gates in gate_gradients(model, [group], Calibration(batches=data))])
        error = rows.std(0, correction=0) / len(rows) ** 0.5
        expected = (
            0.5 * _by_loop(rows.abs().mean(0))
            + 0.25 * _by_loop(rows.mean(0).abs() / error.clamp_min(1e-300))
            + 0.25 * _by_loop(rows.sign().mean(0).abs())
        )
        assert torch.allclose(part.scores[group.name], expected, atol=0.51 / group.units)


@pytest.mark.parametrize("kind", ["plain", "words"])
@pytest.mark.parametrize("fusion", ["simple", "adaptive", "learned"])
def test_enhanced_is_the_weighted_mean_of_its_parts(kind: str, fusion: str) -> None:
    model, groups, data = _network(kind)
    options = {"fusion": fusion, "ablations": 12 if fusion == "learned" else 24, **_FEW}

    def calibration() -> Calibration:
        return Calibration(batches=data, options=options, generator=torch.Generator().manual_seed(4))

    made = calibration()
    scores = enhanced(model, groups, made)
    assert set(made.found["weights"]) == set(PARTS) and sum(made.found["weights"].values()) == pytest.approx(
        1, abs=1e-3
    )
    again = enhanced(model, groups, calibration())
    assert all(torch.equal(scores[name], again[name]) for name in scores)  # type: ignore[arg-type]
    some = _all_samples(data)
    parts = {"magnitude": magnitude_part(model, groups), "gradient": gradient_part(model, groups, some)}
    parts |= observed_parts(model, groups, some, ["activation", "cooperative"], 0.01)
    halves = {name: parts[name].halves for name in parts}
    generator = torch.Generator().manual_seed(4)
    hap = hap_estimate(model, groups, Calibration(batches=data, options=options, generator=generator))
    own = {name: parts[name].scores for name in parts} | {"hessian": hap.scores}
    if fusion == "simple":
        weights = dict.fromkeys(PARTS, 0.2)
    elif fusion == "adaptive":
        weights = {name: 1.0 if half is None else reliability(*half) for name, half in halves.items()}
        weights["hessian"] = hap.reliability
        assert made.found["agreement"] == pytest.approx(weights, abs=1e-4)
    else:
        units = units_to_ablate(groups, 12, generator)
        ablation = Ablation(model, groups, (half_of(some, 0), half_of(some, 1)))
        rises = [sum(ablation.rises(unit)) / 2 for unit in units]
        weights = learned_weights({name: own[name] for name in PARTS}, units, rises)
    total = sum(weights.values())
    for group in groups:
        shares = weights if total else dict.fromkeys(PARTS, 1.0)
        wanted = sum(shares[name] * _by_loop(own[name][group.name]) for name in PARTS) / sum(shares.values())  # type: ignore[operator]
        assert torch.allclose(scores[group.name], wanted, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", PARTS)
def test_every_part_can_be_left_alone_or_left_out(left: str) -> None:
    model, groups, data = _network("plain")
    only = {name: name == left for name in PARTS}
    few = _FEW if left == "hessian" else {}
    made = Calibration(batches=data, options=only | few)
    enhanced(model, groups, made)
    assert made.found["weights"] == {left: 1.0}
    without = Calibration(batches=data, options={left: False} | ({} if left == "hessian" else _FEW))
    enhanced(model, groups, without)
    assert set(without.found["weights"]) == set(PARTS) - {left}


NOTHING = dict.fromkeys(PARTS, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NOTHING, "all five parts are switched off; leave one of them, such as --gradient"),
        ({"hessian": False, "max_probes": 9}, "--max-probes belongs to the part that --no-hessian switches off"),
        ({"cooperative": False, "ridge": 0.5}, "--ridge belongs to the part that --no-cooperative switches off"),
        ({"ablations": 30}, "--ablations belongs to --fusion learned"),
        (
            {**NOTHING, "gradient": True, "fusion": "learned"},
            "--fusion learned weighs parts, and only gradient is left",
        ),
        ({**NOTHING, "magnitude": True, "samples": 3}, "--samples belongs to parts that look at data"),
        ({"samples": 17}, "--samples 17: the calibration data has 16; ask for fewer"),
        ({"fusion": "learned", "ablations": 99, **_FEW}, "--ablations 99: there are "),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    model, groups, data = _network("plain")
    with pytest.raises(MethodError) as caught:
        enhanced(model, groups, Calibration(batches=data, options=options))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_samples_are_the_first_ones_and_a_single_one_is_too_few() -> None:
    model, groups, data = _network("plain")
    options = {"samples": 6, "hessian": False}
    some = enhanced(model, groups, Calibration(batches=data, options=options))
    cut = [data[0], (data[1][0][:2], data[1][1][:2])]
    first = enhanced(model, groups, Calibration(batches=cut, options={"hessian": False}))
    assert all(torch.equal(some[name], first[name]) for name in some)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="two samples at least"):
        enhanced(model, groups, Calibration(batches=data, options={"samples": 1, "hessian": False}))


def test_a_group_that_a_part_cannot_rank_is_ranked_by_the_others() -> None:
    model, groups, data = _network("plain")
    group = groups[0]
    unread = ChannelGroup("w", group.units, group.channels, tuple(m for m in group.members if m.role == "producer"))
    nothing = ChannelGroup("n", group.units, group.channels, tuple(m for m in group.members if m.role == "carrier"))
    made = Calibration(batches=data, options={"hessian": False})
    scores = enhanced(model, [group, unread, nothing], made)
    assert made.found["without"]["w"] == ["activation", "cooperative"]
    assert isinstance(scores["w"], Tensor) and scores["n"] == "none of the parts can rank it"
