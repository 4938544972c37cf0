"""Widths by what layers cost on trial: the knapsack, the costs of channels, and the curves."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunecli
from prunecli.errors import MethodError
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.consequence import Consequences, Curve, measure_curves
from prunecli.methods.knapsack import Choices, cheapest
from prunecli.methods.layer_costs import LayerCosts
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Grouped, Plain, Residual, example


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_knapsack_is_the_best_of_all_combinations(data: st.DataObject) -> None:
    choices: dict[str, Choices] = {}
    prices: dict[str, Any] = {}
    for name in "abc"[: data.draw(st.integers(1, 3))]:
        units = sorted(data.draw(st.sets(st.integers(1, 30), min_size=1, max_size=5)))
        losses = data.draw(st.lists(st.floats(0, 10), min_size=len(units), max_size=len(units)))
        choices[name] = Choices(np.asarray(units), np.asarray(losses))
        prices[name] = np.asarray(sorted(data.draw(st.floats(0.1, 50)) * count for count in units))

    def cost(units: Any) -> float:
        return float(sum(prices[name][list(choices[name].units).index(count)] for name, count in units.items()))

    every = [
        dict(zip(choices, units, strict=True)) for units in itertools.product(*(c.units for c in choices.values()))
    ]

    def loss(units: Any) -> float:
        return float(sum(c.losses[list(c.units).index(units[name])] for name, c in choices.items()))

    budget = data.draw(st.floats(0, 1)) * max(map(cost, every))
    found = cheapest(choices, prices, budget, lambda units: cost(units) <= budget)
    fewest = {name: int(c.units[0]) for name, c in choices.items()}
    if cost(fewest) > budget:
        assert found == fewest
        return
    assert cost(found) <= budget
    # Costs are rounded up to steps, of which one for each group may be missing.
    tight = budget - len(choices) * max(map(cost, every)) / 4096
    allowed = [loss(units) for units in every if cost(units) <= tight]
    assert loss(found) <= min(allowed, default=loss(fewest)) + 1e-9


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("network", [Plain, Residual, Grouped])
def test_costs_are_those_of_networks_that_were_really_pruned(network: type[nn.Module], kind: str) -> None:
    torch.manual_seed(0)
    model = network().eval()
    groups = trace(model, example(), prune_stem=True).groups
    costs = LayerCosts(model, groups, kind, example())
    whole = {group.name: group.units for group in groups}
    generator = torch.Generator().manual_seed(1)

    def measured(units: dict[str, int]) -> int:
        pruned = copy.deepcopy(model)
        remove(pruned, groups, {group.name: torch.arange(units[group.name]) for group in groups})
        return parameter_count(pruned) if kind == "params" else count_macs(pruned, example()).total

    dense, first = measured(whole), costs.total(whole)
    for _ in range(4):
        units = {
            group.name: max(group.multiple, int(torch.randint(1, group.units + 1, (), generator=generator)))
            for group in groups
        }
        units = {group.name: units[group.name] // group.multiple * group.multiple for group in groups}
        assert first - costs.total(units) == pytest.approx(dense - measured(units), rel=1e-9)
    for group in groups:
        numbers = np.array([group.multiple, group.units])
        fewer, all_ = costs.prices(group.name, numbers, whole)
        assert all_ - fewer == pytest.approx(first - costs.total({**whole, group.name: group.multiple}), rel=1e-9)


class Copies(nn.Module):
    """Two hidden layers; every unit of the second has seven copies, those of the first are all different."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 6)
        with torch.no_grad():
            for tensor in (self.second.weight, self.second.bias):
                tensor.copy_(tensor[::8].repeat_interleave(8, dim=0) * 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def _inputs(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(32, 12, generator=generator) for _ in range(count)]


def _pruned(scope: str, **settings: Any) -> Any:
    return prunecli.prune(
        Copies().eval(),
        "obs-greedy",
        example_inputs=torch.zeros(1, 12),
        data=_inputs(),
        scope=scope,
        prune_stem=True,
        compensate="ls",
        recalibrate=False,
        **settings,
    )


def test_channels_go_where_they_cost_nothing() -> None:
    model, inputs = Copies().eval(), torch.cat(_inputs())
    wanted = model(inputs).detach()
    lost = {}
    for scope in ("local", "measured"):
        done = _pruned(scope, ratio=0.4)
        lost[scope] = float((done.model(inputs).detach() - wanted).square().mean())
        widths = {edit.group: edit.width_after for edit in done.report.edits}
    assert widths["second"] <= 8 and sum(32 - width for width in widths.values()) >= 24
    assert lost["measured"] < 0.1 * lost["local"]
    assert done.report.scope == "measured" and done.report.scoring["expected_difference"] >= 0


@pytest.mark.parametrize("target", ["params", "macs"])
def test_targets_are_reached(target: str) -> None:
    done = _pruned("measured", **{target: 0.6})
    assert done.report.target.achieved == pytest.approx(0.6, abs=0.03)


def test_layers_that_cost_too_much_say_so() -> None:
    done = _pruned("measured", ratio=0.3)
    kept = {entry.name: entry.reason for entry in done.report.untouched}
    assert "it costs more on trial than others do" in kept["first"]


def test_ratios_of_later_steps_count_against_the_dense_network() -> None:
    once, stepwise = _pruned("measured", ratio=0.5), _pruned("measured", ratio=0.5, schedule="linear", steps=3)
    assert once.report.achieved == pytest.approx(0.5, abs=0.07)
    assert stepwise.report.achieved == pytest.approx(0.5, abs=0.07) and len(stepwise.report.edits) > 2


def test_curves_fall_and_are_zero_where_all_stays() -> None:
    model = Copies().eval()
    groups = trace(model, torch.zeros(1, 12), prune_stem=True).groups
    scores = {group.name: torch.arange(group.units, dtype=torch.float64) for group in groups}
    before = copy.deepcopy(model.state_dict())
    curves = measure_curves(model, groups, scores, {group.name: 2 for group in groups}, _inputs())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for curve in curves.values():
        assert curve.units[0] == 2 and curve.units[-1] == 32 and curve.losses[-1] == 0
        assert list(curve.losses) == sorted(curve.losses, reverse=True) and curve.losses[0] > 0
    same = measure_curves(model, groups, scores, {group.name: 2 for group in groups}, _inputs())
    assert same == curves


def test_neighbours_share_a_budget_by_what_they_really_cost() -> None:
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    groups = trace(model, torch.zeros(1, 4), prune_stem=True).groups
    curves = {group.name: Curve((4, 40), (1.0, 0.0)) for group in groups}
    costs = LayerCosts(model, groups, "macs", torch.zeros(1, 4))
    consequences = Consequences(curves, costs)
    allowed = {group.name: list(range(4, 41)) for group in groups}
    whole = costs.total({group.name: 40 for group in groups})
    for ratio in (0.2, 0.5, 0.8):
        units = consequences.counts(ratio, allowed)
        assert costs.total(units) <= (1 - ratio) * whole
        best = min(
            consequences.expected({"0": first, "2": second})
            for first in range(4, 41)
            for second in range(4, 41)
            if costs.total({"0": first, "2": second}) <= (1 - ratio) * whole
        )
        assert consequences.expected(units) <= best + 3 / 36  # as if three channels more had gone


class Chosen(Copies):
    """Returns as many rows as are greater than a number."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores[scores[:, 0] > scores[:, 1]]


def test_outputs_of_any_size_are_refused_in_one_line() -> None:
    model, inner = Chosen().eval(), Copies().eval()
    groups = trace(inner, torch.zeros(1, 12), prune_stem=True).groups
    scores = {group.name: torch.arange(group.units, dtype=torch.float64) for group in groups}
    with pytest.raises(MethodError, match=r"^--scope measured compares outputs[^\n]*choose --scope global$"):
        measure_curves(model, groups, scores, {group.name: 2 for group in groups}, _inputs())


def test_without_data_it_says_so() -> None:
    with pytest.raises(MethodError, match="scope='measured' judges layers on data: give calibration batches as data="):
        prunecli.prune(Copies(), "l1", example_inputs=torch.zeros(1, 12), scope="measured", prune_stem=True)
