"""Neurons of snntorch and norse are watched and proven like spikingjelly's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from snntorch import utils as snntorch_reset
from torch import Tensor, nn

import prunecli
from prunecli.copying import copied
from prunecli.criteria.base import Calibration
from prunecli.criteria.spike import spike
from prunecli.errors import MethodError
from prunecli.inputs import run_batch
from prunecli.measure.neurons import package_of, reset_itself, spiking_neurons, unwatched_neurons
from prunecli.measure.spikes import FiringStatistics
from prunecli.sparsity.connections import wiring_of
from prunecli.sparsity.spike_masks import mask_spikes, masked_spikes
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.tracing.trace import trace

STEPS = 4


class Hidden(nn.Module):
    """Neurons of snntorch that keep their state, reset by the network as its tutorials do."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), neuron(), nn.Conv2d(8, 12, 3), neuron(), nn.Flatten(), nn.Linear(192, 16), neuron()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        snntorch_reset.reset(self.net)
        return torch.stack([self.head(self.net(x)) for _ in range(STEPS)]).mean(dim=0)


class Explicit(nn.Module):
    """Neurons of snntorch whose state forward passes along."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(10, 12), nn.Linear(12, 14), nn.Linear(14, 5)
        self.lif1 = snntorch.Leaky(beta=0.8, threshold=0.5)
        self.lif2 = snntorch.Synaptic(alpha=0.7, beta=0.8, threshold=0.4)

    def forward(self, x: Tensor) -> Tensor:
        mem1, (syn2, mem2), total = self.lif1.reset_mem(), self.lif2.reset_mem(), x.new_zeros(len(x), 5)
        for _ in range(STEPS):
            spikes, mem1 = self.lif1(self.first(x), mem1)
            spikes, syn2, mem2 = self.lif2(self.second(spikes), syn2, mem2)
            total = total + self.head(spikes)
        return total


class NorseCells(nn.Module):
    """Cells of norse, called once per step."""

    def __init__(self, cell: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(10, 12), nn.Linear(12, 14), nn.Linear(14, 5)
        self.cell1, self.cell2 = cell(), cell()

    def forward(self, x: Tensor) -> Tensor:
        state1 = state2 = None
        total = x.new_zeros(len(x), 5)
        for _ in range(8):
            spikes, state1 = self.cell1(self.first(40 * x), state1)
            spikes, state2 = self.cell2(self.second(40 * spikes), state2)
            total = total + self.head(spikes)
        return total


class NorseLayers(nn.Module):
    """Layers of norse that take all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 8, 3)), norse.LIF(), nn.Flatten(2), nn.Linear(288, 16), norse.LIF()
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.net(40 * x.expand(8, *x.shape))
        return self.head(40 * spikes).mean(dim=0)


def _leaky(**kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: snntorch.Leaky(beta=0.7, threshold=0.3, init_hidden=True, **kwargs)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "leaky": (lambda: Hidden(_leaky()), (1, 8, 8)),
    "leaky-zero": (lambda: Hidden(_leaky(reset_mechanism="zero", learn_threshold=True)), (1, 8, 8)),
    "leaky-graded": (lambda: Hidden(_leaky(graded_spikes_factor=2.0)), (1, 8, 8)),
    "lapicque": (lambda: Hidden(lambda: snntorch.Lapicque(beta=0.7, threshold=0.3, init_hidden=True)), (1, 8, 8)),
    "synaptic": (
        lambda: Hidden(lambda: snntorch.Synaptic(alpha=0.6, beta=0.7, threshold=0.3, init_hidden=True)),
        (1, 8, 8),
    ),
    "explicit": (Explicit, (10,)),
    "norse-cells": (lambda: NorseCells(norse.LIFCell), (10,)),
    "norse-refractory": (lambda: NorseCells(norse.LIFRefracCell), (10,)),
    "norse-layers": (NorseLayers, (1, 8, 8)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    build, shape = NETWORKS[name]
    return build().eval(), torch.rand(4, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_package_is_pruned_by_spikes_and_proven(name: str) -> None:
    model, x = network(name)
    with torch.no_grad():
        before = model(x)
    result = prunecli.prune(model, "spike", example_inputs=x, ratio=0.5, data=[x])
    assert len(spiking_neurons(result.model)) == len(spiking_neurons(model)) > 1
    assert result.report.params_after < 0.75 * result.report.params_before
    with torch.no_grad():
        first, second = result.model(x), result.model(x)
        assert torch.equal(model(x), before), "the original computes as before"
    assert torch.equal(first, second), "nothing is remembered between passes"


@pytest.mark.parametrize("name", NETWORKS)
def test_firing_rates_are_those_of_a_loop(name: str) -> None:
    model, x = network(name)
    reset_itself(model)
    stored: dict[str, list[Tensor]] = {each: [] for each in spiking_neurons(model)}

    def keep(module: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(m: nn.Module, a: Any, out: Any) -> None:
            stored[module].append((out[0] if isinstance(out, tuple) else out).clone())

        return hook

    for each in stored:
        model.get_submodule(each).register_forward_hook(keep(each))
    statistics = FiringStatistics(model)
    with torch.no_grad(), statistics.watching():
        run_batch(model, x)
    statistics.end_pass(len(x))
    assert statistics.timesteps == (8 if name.startswith("norse") else STEPS)
    for figures in statistics.neurons():
        fired = torch.stack([(spikes != 0).double() for spikes in stored[figures.name]])
        fired = fired[0] if name == "norse-layers" else fired
        by_channel = fired.movedim(2, 0).flatten(1).mean(dim=1)
        assert figures.channel_rates == pytest.approx(by_channel.tolist())
    assert 0 < statistics.firing_rate < 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_comparison_makes_them_fire_and_sees_a_wrong_channel(name: str) -> None:
    model, x = network(name)
    reset_itself(model)
    with torch.no_grad():
        for each in spiking_neurons(model).values():
            package_of(each).set_threshold(each, 1e6)  # nothing fires: every mistake would be hidden
        pair = with_active_neurons(model, model, x)
        assert pair is not None
        statistics = FiringStatistics(pair[0])
        with statistics.watching():
            run_batch(pair[0], x)
        for figures in statistics.neurons():
            assert 0 < figures.rate < 1, figures.name
        pair[1].head.weight.copy_(pair[1].head.weight.roll(1, dims=1))  # type: ignore[union-attr, operator]
        assert not torch.allclose(run_batch(pair[0], x), run_batch(pair[1], x))
        assert package_of(each).threshold(each) == pytest.approx(1e6)


def test_potentials_count_where_a_neuron_shows_them() -> None:
    model, x = network("explicit")
    groups = trace(model, x).groups
    scores = spike(model, groups, Calibration(batches=[x], options={"criterion": "rate+v"}))
    assert all(isinstance(score, Tensor) and score.isfinite().all() for score in scores.values())
    model, x = network("norse-layers")
    with pytest.raises(MethodError, match=r"is a LIF, which does not keep the potentials rate\+v needs"):
        spike(model, trace(model, x).groups, Calibration(batches=[x], options={"criterion": "rate+v"}))


def test_criteria_over_all_steps_name_neurons_that_take_one() -> None:
    model, x = network("explicit")
    with pytest.raises(MethodError, match=r"all steps of a (Leaky|Synaptic) at once"):
        spike(model, trace(model, x).groups, Calibration(batches=[x], options={"criterion": "variance"}))


def test_a_parallel_neuron_is_named_as_not_watched() -> None:
    model = nn.Sequential(nn.Linear(4, 6), snntorch.LeakyParallel(6, 6), nn.Linear(6, 2))
    assert unwatched_neurons(model) == {"1": "LeakyParallel"}
    assert not unwatched_neurons(network("leaky")[0])


def test_reset_functions_of_snntorch_reach_the_pruned_and_the_loaded_network(tmp_path: Path) -> None:
    """They go through all neurons ever constructed, and ours are copies."""
    neuron = {"beta": 0.9, "threshold": 5.0, "init_hidden": True}

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), snntorch.Leaky(**neuron), nn.Linear(8, 3), snntorch.Leaky(**neuron))

    x = torch.rand(2, 6)
    result = prunecli.prune(build(), "l1", example_inputs=x, ratio=0.5, prune_stem=True)
    result.save(tmp_path / "pruned.safetensors")
    for pruned in (result.model, prunecli.load(tmp_path / "pruned.safetensors", build())):
        with torch.no_grad():
            for _ in range(3):
                pruned(x)
            snntorch_reset.reset(pruned)
        for each in spiking_neurons(pruned).values():
            assert not each.mem.any()  # type: ignore[union-attr, operator]


class Twice(Hidden):
    """Two samples in one pass, with a reset in between that a copy must not leave to the original's neurons."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(Twice, self).forward(part) for part in x.chunk(2)])


def test_a_reset_in_the_middle_of_a_pass_reaches_the_copy() -> None:
    torch.manual_seed(0)
    model = Twice(_leaky()).eval()
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
        ours = copied(model)
        reset_itself(ours)
        assert torch.equal(ours(x), expected)


@pytest.mark.parametrize("name", ["explicit", "norse-cells", "leaky"])
def test_spikes_of_other_packages_can_be_masked(name: str) -> None:
    model, x = network(name)
    shapes = wiring_of(model, x).shapes
    for each, shape in shapes.items():
        mask_spikes(model.get_submodule(each), torch.arange(math.prod(shape)).reshape(shape) % 3 > 0)
    result = prunecli.prune(model, "l1", example_inputs=x, ratio=0.5)
    widths = {each: len(mask) for each, mask in masked_spikes(result.model).items()}
    assert any(width < shapes[each][0] for each, width in widths.items())
