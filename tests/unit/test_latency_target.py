"""`--latency`: what layers cost in time, widths that are fast, and a target that is reached by noisy times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from prunecli.measure import layer_times
from prunecli.measure.layer_times import LayerTimes, time_layers, width_curve
from prunecli.methods import layer_costs
from prunecli.methods.allocation import Allocation, Demand, allocate
from prunecli.methods.layer_costs import LayerCosts, thinned
from prunecli.methods.params import StructuralParams
from prunecli.methods.targets import Ruler
from prunecli.methods.widths import widths_of
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Plain, example


class TestLayers:
    def test_every_layer_is_timed_and_the_activation_belongs_to_the_layer_before(self) -> None:
        times = time_layers(Plain().eval(), example())
        assert set(times.seconds) == {*(f"body.{index}" for index in range(9)), "head.fc"}
        assert all(seconds > 0 for seconds in times.seconds.values())
        assert times.follows == {"body.2": "body.1", "body.5": "body.4", "body.8": "body.7"}
        assert times.inputs["body.3"].shape == (2, 16, 16, 16)

    def test_what_runs_inside_a_layer_counts_once(self) -> None:
        class Slow(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                for _ in range(200):
                    x = x + 1
                return x

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale, self.inner = nn.Parameter(torch.ones(1)), Slow()

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x) * self.scale

        seconds = time_layers(nn.Sequential(Outer()), torch.ones(4)).seconds
        assert seconds["0"] < 0.5 * seconds["0.inner"]

    @pytest.mark.parametrize(
        ("layer", "shape", "dims"),
        [
            (nn.Conv2d(8, 12, 3, padding=1, bias=False), (2, 8, 6, 6), (0, 1)),
            (nn.Conv1d(8, 12, 3), (2, 8, 6), (0, 1)),
            (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 6, 6), (0,)),
            (nn.Linear(8, 12), (2, 5, 8), (0, 1)),
        ],
    )
    def test_narrower_layers_run_at_every_width(
        self, layer: Any, shape: tuple[int, ...], dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran: list[tuple[int, ...]] = []
        narrowed = layer_times._narrowed
        channel = -1 if isinstance(layer, nn.Linear) else 1

        def watched(*given: Any, **named: Any) -> nn.Module:
            module = narrowed(*given, **named)
            module.register_forward_hook(
                lambda _, inputs, output: ran.append((inputs[0].shape[channel], output.shape[channel]))
            )
            return module

        monkeypatch.setattr(layer_times, "_narrowed", watched)
        layer.eval()
        given, written = shape[channel], layer(torch.randn(shape)).shape[channel]
        for dim in dims:
            ran.clear()
            times = width_curve(layer, torch.randn(shape), dim, [2, 5, 8])
            assert times is not None and times.shape == (3,) and (times > 0).all()
            both = len(dims) == 1
            expected = {(n if dim == 1 or both else given, n if dim == 0 or both else written) for n in (2, 5, 8)}
            assert set(ran) == expected

    def test_other_layers_have_no_curve(self) -> None:
        assert width_curve(nn.Conv2d(8, 8, 3, groups=2), torch.randn(1, 8, 6, 6), 0, [4]) is None
        assert width_curve(nn.ConvTranspose2d(8, 8, 3), torch.randn(1, 8, 6, 6), 0, [4]) is None
        assert width_curve(nn.BatchNorm2d(8), torch.randn(1, 8, 6, 6), 0, [4]) is None


class Chain(nn.Module):
    """Two hidden layers of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1)
        self.last = nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.act(self.first(x)))))


def _stepwise(_layer: Any, _example: Any, dim: int, widths: list[int]) -> np.ndarray:
    """Kernels that write sixteen channels at once, and read any number of them."""
    return np.array([float(-(-width // 16) * 16 if dim == 0 else width) for width in widths])


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> tuple[Chain, list[ChannelGroup]]:
    model, inputs = Chain().eval(), torch.randn(1, 3, 4, 4)
    seconds = {"first": 1.0, "act": 0.5, "second": 8.0, "last": 0.1}
    shapes = {"first": 3, "act": 64, "second": 64, "last": 64}
    given = {name: torch.zeros(1, channels, 4, 4) for name, channels in shapes.items()}
    monkeypatch.setattr(layer_costs, "time_layers", lambda *_: LayerTimes(seconds, given, {"act": "first"}))
    monkeypatch.setattr(layer_costs, "width_curve", _stepwise)
    return model, list(trace(model, inputs, prune_stem=True).groups)


def test_time_is_a_product_of_what_widths_make_of_it(chain: tuple[Chain, list[ChannelGroup]]) -> None:
    model, groups = chain
    allowed = {name: list(range(8, 65, 8)) for name in ("first", "second")}
    costs = LayerCosts(model, groups, "latency", torch.randn(1, 3, 4, 4), allowed)
    assert costs.total({}) == pytest.approx(9.6)
    # first: 32 of 64 to write; the activation as many; second: reads 32, writes 48 of 64 (40 take as long); last: 40.
    by_hand = 1.0 * 0.5 + 0.5 * 0.5 + 8.0 * 0.5 * 0.75 + 0.1 * 40 / 64
    assert costs.total({"first": 32, "second": 40}) == pytest.approx(by_hand)
    prices = costs.prices("second", np.array([40, 48]), {"first": 32})
    assert prices == pytest.approx([3 + 0.1 * 40 / 64, 3 + 0.1 * 48 / 64])


def test_widths_that_cost_as_much_as_greater_ones_are_left_out(chain: tuple[Chain, list[ChannelGroup]]) -> None:
    model, groups = chain
    allowed = {name: list(range(8, 65, 8)) for name in ("first", "second")}
    costs = LayerCosts(model, groups, "latency", torch.randn(1, 3, 4, 4), allowed)
    # What reads the first layer's channels takes time for each of them; what reads the second's hardly any.
    assert costs.worthwhile("first", allowed["first"]) == allowed["first"]
    assert costs.worthwhile("second", allowed["second"]) == [8, 16, 32, 48, 64]  # the bounds' least is always there


def test_an_allocation_takes_such_widths_alone(chain: tuple[Chain, list[ChannelGroup]]) -> None:
    _, groups = chain
    scores = {group.name: torch.arange(64, dtype=torch.float64) for group in groups}
    for scope in ("local", "global"):
        params = StructuralParams(scope=scope)  # type: ignore[arg-type]
        for ratio in (0.1, 0.3, 0.45, 0.7):
            kept = allocate(groups, scores, params, Demand(ratio, widths={"second": [16, 48, 64]})).keep
            assert len(kept["second"]) in (16, 48, 64)
        assert len(allocate(groups, scores, params, Demand(1.0, widths={"second": [16, 48, 64]})).keep["second"]) == 16


def test_few_enough_widths_are_timed() -> None:
    assert thinned([4, 6, 8]) == [4, 6, 8]
    assert thinned(range(8, 257, 8)) == [8, *range(16, 257, 16)]
    assert thinned([*range(56, 513, 8)]) == [56, *range(64, 513, 32)]
    assert thinned([*range(8, 241, 8)])[-1] == 240


class Noisy(Ruler):
    """A ruler that knows the share: that of channels, with an error of up to 4 %."""

    def __init__(self, seed: int) -> None:
        self.kind, self._random, self.measured = "latency", np.random.default_rng(seed), 0
        self._dense = nn.Identity()

    def share(self, model: nn.Module, groups: list[ChannelGroup], allocation: Allocation) -> float:
        self.measured += 1
        return _share(allocation) * float(self._random.uniform(0.96, 1.04))


def _share(allocation: Allocation) -> float:
    return sum(len(keep) for keep in allocation.keep.values()) / (40 * 64)


@pytest.mark.parametrize("step", [1, 16])
def test_a_target_is_reached_by_noisy_measurements(step: int) -> None:
    def plan(ratio: float) -> Allocation:
        left = max(4, round(64 * (1 - ratio) / step) * step)
        return Allocation({f"layer{i}": torch.arange(left) for i in range(40)}, {}, ratio, 1 - left / 64)

    wanted = 0.55
    off = []
    for seed in range(30):
        ruler = Noisy(seed)
        off.append(abs(_share(ruler.reach(wanted, nn.Identity(), [], plan)) / wanted - 1))
        assert ruler.measured <= 11
    assert np.mean(off) < 0.02 and np.mean(np.array(off) < 0.03) > 0.8


def test_later_steps_begin_at_what_the_present_network_takes() -> None:
    class Later(Noisy):
        def measure(self, model: nn.Module) -> float:
            return 0.625

        def share(self, model: nn.Module, groups: list[ChannelGroup], allocation: Allocation) -> float:
            return 0.625 * super().share(model, groups, allocation)

    def plan(ratio: float) -> Allocation:
        left = max(4, round(64 * (1 - ratio)))
        return Allocation({f"layer{i}": torch.arange(left) for i in range(40)}, {}, ratio, 1 - left / 64)

    off = [abs(0.625 * _share(Later(s).reach(0.5, nn.Linear(2, 2), [], plan)) / 0.5 - 1) for s in range(30)]
    assert np.mean(off) < 0.02


def _gpt2() -> tuple[nn.Module, Tensor]:
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=50, n_positions=16)
    return GPT2LMHeadModel(config).eval(), torch.arange(8).reshape(1, 8)


def _costs_of(monkeypatch: pytest.MonkeyPatch, module: str, follows: dict[str, str]) -> tuple[LayerCosts, list[Any]]:
    model, inputs = _gpt2()
    times = LayerTimes({module: 1.0}, {}, follows)
    monkeypatch.setattr(layer_costs, "time_layers", lambda *_: times)
    groups = list(trace(model, inputs).groups)
    return LayerCosts(model, groups, "latency", inputs), groups


def test_activations_take_as_long_as_the_channels_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's weights have inputs first."""
    mlp = "transformer.h.0.mlp"
    costs, groups = _costs_of(monkeypatch, f"{mlp}.act", {f"{mlp}.act": f"{mlp}.c_fc"})
    halves = {group.name: costs.total({group.name: group.units // 2}) for group in groups}
    assert halves[f"{mlp}.c_fc"] == pytest.approx(0.5)
    assert sorted(halves.values())[1:] == pytest.approx([1.0] * (len(halves) - 1))


def test_a_layer_with_the_weight_of_another_takes_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, groups = _costs_of(monkeypatch, "lm_head", {})
    assert costs.total({}) == pytest.approx(1.0)
    assert min(costs.total({group.name: group.units // 2}) for group in groups) == pytest.approx(0.5)


class Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))

    def forward(self) -> Tensor:
        return self.value


class Odd(nn.Module):
    """Layers that are not torch's own, or not only, and one that is never called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        width = 64
        middle: nn.Module = nn.Conv2d(width, width, 3, padding=1)
        if kind == "weight norm":
            middle = torch.nn.utils.weight_norm(middle)
        if kind == "parametrization":
            middle = torch.nn.utils.parametrizations.weight_norm(middle)
        if kind == "standardised":
            middle = ScaledStdConv2d(width, width, 3, padding=1)
        self.kind, self.offset = kind, Offset()
        self.first, self.middle, self.last = nn.Conv2d(3, width, 3), middle, nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) * self.offset()
        middle: Any = self.middle
        x = nn.functional.conv2d(x, middle.weight) if self.kind == "never called" else middle(x)
        return self.last(torch.relu(x)).mean((2, 3))


@pytest.mark.parametrize("kind", ["weight norm", "parametrization", "standardised", "never called"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_layers_of_any_kind_can_be_timed(kind: str) -> None:
    model, inputs = Odd(kind).eval(), torch.randn(1, 3, 12, 12)
    groups = list(trace(model, inputs, prune_stem=True).groups)
    assert groups
    widths = widths_of(model, groups, StructuralParams(), "latency", inputs, {g.name: g.channels for g in groups})
    for group in groups:
        numbers = widths.chosen[group.name]
        assert numbers[-1] == group.units and numbers[0] < group.units // 4
