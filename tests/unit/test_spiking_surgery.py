"""Removing channels of spiking networks is the same as masking their spikes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import prunecli
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.catalog import build
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.proof.verify import _difference, _probes
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from tests.unit.test_spiking_models import images, made

GROUPS: list[tuple[str, dict[str, Any], dict[str, bool], str, str]] = [
    ("spikformer-1-32", {"pool": "after"}, {"prune_stem": True}, "patch_embed.stages.0.conv_bn.block.0", "channel"),
    ("spikformer-1-32", {}, {}, "blocks.0.mlp.fc1.0", "channel"),
    ("spikformer-1-32", {}, {}, "blocks.0.attn.qkv_conv_bn.0", "head_dim"),
    ("spikformer-1-32", {}, {"heads": True}, "blocks.0.attn.qkv_conv_bn.0", "head"),
    ("qkformer-3-64", {}, {"heads": True}, "stage3.0.attn.qkv_conv_bn.0", "head"),
    ("sdt-2-64", {}, {}, "blocks.0.attn.q_conv", "channel"),
    ("vgg5", {"width": 0.25}, {}, "features.7", "channel"),
    ("vgg5", {"width": 0.25, "neuron": "if", "v_reset": None}, {}, "classifier.1", "channel"),
    ("resnet19", {"width": 0.125}, {}, "layers.1.0.conv2", "channel"),
]
LIKE_THEM = [
    ("spikformer-1-32", {}, {}, "patch_embed.stages.2.conv_bn.block.0", "channel"),
    ("spikformer-1-32", {}, {}, "patch_embed.stages.3.conv_bn.block.0", "channel"),
    ("qkformer-3-64", {}, {}, "stage1.0.attn.qk_conv_bn.0", "channel"),
    ("vgg5", {"width": 0.25}, {}, "features.4", "channel"),
]
"""Each has a group there that is removed in the same way."""


def _request(method: str, **params: Any) -> PruneRequest:
    return PruneRequest(method=method, params=get_method(method).params_class(**params), example_inputs=images(1))


@pytest.mark.parametrize(
    ("name", "kwargs", "options", "group_name", "kind"),
    [*GROUPS, *(pytest.param(*group, marks=pytest.mark.slow) for group in LIKE_THEM)],
)
def test_removed_is_masked_and_a_wrong_column_shows(
    name: str, kwargs: dict[str, Any], options: dict[str, bool], group_name: str, kind: str
) -> None:
    model = made(name, T=2, **kwargs)
    x = images(1)
    traced = trace(model, x, **options)  # type: ignore[arg-type]
    group = traced.group(group_name)
    assert group.kind == kind and group.emissions
    keep = {group_name: torch.arange(group.units)[1::2]}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    probe, sliced = _probes(model, pruned, traced, keep)
    assert _difference(probe, sliced, traced, keep, x.double()) == 0.0  # spikes are whole numbers: nothing rounds
    reader = next(member for member in group.members if member.role == "consumer")
    with torch.no_grad():
        weight = getattr(sliced.get_submodule(reader.module), reader.tensor)
        weight.copy_(weight.roll(1, reader.dim) if weight.shape[reader.dim] > 1 else -weight)
    assert _difference(probe, sliced, traced, keep, x.double()) > 1e-3


class _WidthInAFormula(nn.Module):
    """Multiplies by a width, so removing channels is not the same as masking them."""

    def __init__(self, make: Callable[[], nn.Module], *, norm: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(
            layer.Conv2d(2, 16, 3, padding=1), *([layer.BatchNorm2d(16)] if norm else []), make()
        )
        self.second, self.spikes = layer.Conv2d(16, 16, 3, padding=1), make()
        self.head = nn.Sequential(layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(16, 4))
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.spikes(self.second(x) * (1 + x.shape[2])))  # type: ignore[no-any-return]


class _LearntThreshold(neuron.LIFNode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        del self.v_threshold
        self.v_threshold = nn.Parameter(torch.tensor(1.0))


NEURONS: list[Callable[[], nn.Module]] = [
    neuron.LIFNode,
    partial(neuron.LIFNode, v_reset=-65.0, v_threshold=-50.0),
    neuron.TernaryIFNode,
    partial(neuron.LIFNode, v_reset=-2.0),
    partial(neuron.LIFNode, decay_input=False, tau=20.0),
    partial(neuron.ParametricLIFNode, init_tau=20.0),
    partial(neuron.IFNode, v_reset=None),
    partial(neuron.SimpleLIFNode, tau=2.0, decay_input=True),
    _LearntThreshold,
]
"""The three most different ones come first."""


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        *((make, True) for make in NEURONS),
        *((make, False) for make in NEURONS[:3]),
        *(pytest.param(make, False, marks=pytest.mark.slow) for make in NEURONS[3:]),
    ],
)
def test_no_kind_of_neuron_hides_a_wrong_removal(make: Callable[[], nn.Module], norm: bool) -> None:
    torch.manual_seed(1)
    frames = torch.randn(3, 2, 2, 8, 8)
    model = _WidthInAFormula(make, norm=norm).eval()
    result = prunecli.prune(model, "l1", ratio=0.5, example_inputs=frames, prune_stem=True, round_to=1)
    assert "not the same as masking" in {entry.name: entry.reason for entry in result.report.untouched}["first.0"]


def test_neurons_fire_while_networks_are_compared() -> None:
    model = made("spikformer-1-32").double()
    rates: dict[str, float] = {}

    def watch(network: nn.Module) -> None:
        for name, module in spiking_neurons(network).items():
            module.register_forward_hook(lambda m, a, out, name=name: rates.__setitem__(name, float(out.mean())))

    x = images(1).double()
    with torch.no_grad():
        silent = copy.deepcopy(model)
        watch(silent)
        silent(x)
        assert min(rates.values()) == 0.0  # without the new thresholds nothing would be compared
        pair = with_active_neurons(model, model, x)
        assert pair is not None
        watch(pair[0])
        pair[0](x)
    assert all(0.1 < rate < 0.7 for rate in rates.values()), rates
    assert with_active_neurons(nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(1, 2)) is None


def test_the_factor_before_spikes_are_multiplied_stays() -> None:
    # 64 dimensions in a head: the constant 0.125 looks like 64 ** -0.5, but nothing divides by head_dim here.
    model = made("spikformer-1-32", T=2, dim=64, num_heads=1)
    traced = trace(model, images(1))
    group = traced.group("blocks.0.attn.qkv_conv_bn.0")
    assert group.units == 64 and not group.scales
    outcome = prune_structural(model, _request("l1", ratio=0.5))
    assert outcome.model.blocks[0].attn.scale == 0.125  # type: ignore[index, union-attr]
    assert outcome.report.verify_error == 0.0


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("spikformer-1-32", {"patch_embed.stages.3.conv_bn.block.0"}),
        ("sdt-2-64", {"patch_embed.final_stage.0"}),
        ("resnet19", {"layers.1.0.conv2", "layers.2.0.conv2"}),
    ],
)
def test_the_residual_stream_is_held_unless_asked_for(name: str, held: set[str]) -> None:
    model = made(name, T=2, **({"width": 0.125} if name == "resnet19" else {}))

    def widths(residual: bool) -> set[str]:
        outcome = prune_structural(
            model, _request("spike", criterion="l1", ratio=0.5, residual=residual, scope="local")
        )
        assert outcome.report.verify_error == 0.0
        return {edit.group for edit in outcome.report.edits}

    assert widths(True) - widths(False) == held


def test_a_pruned_network_can_be_pruned_again_and_trains() -> None:
    model = made("sdt-2-64", T=2)
    once = prune_structural(model, _request("spike", criterion="l1", ratio=0.4)).model
    twice = prune_structural(once, _request("spike", criterion="l1", ratio=0.4)).model
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())
    twice.train()
    twice(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in twice.parameters())


def test_build_has_no_weights_to_fetch() -> None:
    with pytest.raises(Exception, match="no published weights"):
        build("spiking:vgg5", pretrained=True)
