"""Which channels are found, and why the others are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prunecli.errors import ModelError
from prunecli.models.cifar import ResNet
from prunecli.surgery.proof.comparing import TOLERANCE
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.labels import OUTPUT
from prunecli.surgery.tracing.reasons import STEM, TIED_TO_STEM, UNREACHED
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import RIGHT, Averaged, Gated, Grouped, Plain, example


@pytest.mark.parametrize("network", RIGHT)
def test_every_group_of_a_known_pattern_is_removed_right(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network().eval()
    traced = trace(model, example())
    assert traced.groups
    keep = {group.name: torch.arange(0, group.units, 2) for group in traced.groups}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, example()) <= TOLERANCE
    assert sum(p.numel() for p in pruned.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_first_and_last_layer_are_protected_and_say_so() -> None:
    reasons = {frozen.name: frozen.reason for frozen in trace(Plain(), example()).frozen}
    assert reasons == {"body.0": STEM, "head.fc": OUTPUT}


def test_the_stem_is_included_on_request() -> None:
    assert "body.0" in {group.name for group in trace(Plain(), example(), prune_stem=True).groups}


def test_frozen_parameters_are_traced_and_stay_frozen() -> None:
    model = Plain()
    model.body.requires_grad_(False)
    assert {group.name for group in trace(model, example()).groups} == {"body.3", "body.6"}
    assert not any(parameter.requires_grad for parameter in model.body.parameters())


def test_grouped_convolution_ties_one_channel_of_every_block() -> None:
    group = trace(Grouped(), example()).group("a")
    assert (group.units, group.channels) == (8, 32)
    member = next(m for m in group.members if m.name == "a.weight")
    assert member.index[1].tolist() == [1, 9, 17, 25]


def test_gating_joins_both_branches() -> None:
    group = trace(Gated(), example()).group("a")
    assert set(group.modules("producer")) == {"a", "excite"}
    assert set(group.modules("consumer")) == {"squeeze", "b"}


def test_padded_shortcuts_hold_the_padding_and_inner_widths_are_found() -> None:
    traced = trace(ResNet(3), torch.randn(1, 3, 32, 32))
    assert {group.name for group in traced.groups} == {f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)}
    reasons = {frozen.name: frozen.reason for frozen in traced.frozen}
    assert reasons["conv1"] == STEM and reasons["layer3.2.conv2"] == TIED_TO_STEM
    free = trace(ResNet(3), torch.randn(1, 3, 32, 32), prune_stem=True)
    group = free.group("conv1")
    last = next(m for m in group.members if m.name == "layer3.2.conv2.weight")
    assert group.units == 16 and last.index.flatten().tolist() == list(range(24, 40))  # 8 + 16 padded on each side


def test_a_mean_over_channels_becomes_the_mean_over_those_kept() -> None:
    model = Averaged().eval()
    traced = trace(model, example())
    keep = {"a": torch.arange(0, 16, 2)}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, example()) <= TOLERANCE


def test_a_layer_that_never_runs_is_named() -> None:
    model = Plain()
    model.spare = nn.Conv2d(3, 7, 1)
    assert next(f for f in trace(model, example()).frozen if f.name == "spare").reason == UNREACHED


def test_every_layer_is_accounted_for() -> None:
    for network in RIGHT:
        model = network()
        traced = trace(model, example())
        seen = {frozen.name for frozen in traced.frozen}
        for group in traced.groups:
            seen.update(group.modules("producer", "carrier"))
        layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))}
        assert layers <= seen, network.__name__


def test_a_wrong_input_shape_is_one_line() -> None:
    with pytest.raises(ModelError, match="does not run on the example inputs"):
        trace(Plain(), torch.randn(1, 4, 16, 16))


def test_the_model_is_not_changed() -> None:
    model = Plain().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, example())
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
