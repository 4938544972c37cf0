"""Scores of spiking channels against plain loops over stored spikes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import prunecli
from prunecli.criteria.base import Calibration
from prunecli.criteria.bn_scale import bn_scale
from prunecli.criteria.gradient import fisher
from prunecli.criteria.magnitude import l1
from prunecli.criteria.spike import spike
from prunecli.errors import MethodError
from prunecli.measure.neurons import reset_itself, spiking_neurons
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.trace import trace
from tests.unit.test_spiking_models import firing, images

CRITERIA = ("rate", "rate+v", "entropy", "variance", "singular")


def batches(count: int = 3, each: int = 2) -> list[Tensor]:
    return list(torch.randn(count * each, 3, 32, 32, generator=torch.Generator().manual_seed(7)).split(each))


def scored(model: nn.Module, groups: Any, criterion: str, data: list[Tensor]) -> dict[str, Tensor | str]:
    return spike(model, groups, Calibration(batches=data, options={"criterion": criterion}))


def by_loop(model: nn.Module, group: ChannelGroup, criterion: str, data: list[Tensor]) -> list[float]:
    """The definition: store everything, go through it number by number."""
    stored: dict[str, tuple[list[Tensor], list[Tensor]]] = {e.module: ([], []) for e in group.emissions}
    hooks = []
    for name, (spikes, potentials) in stored.items():
        module = model.get_submodule(name)
        module.store_v_seq = True  # type: ignore[assignment]

        def keep(m: Any, a: Any, out: Tensor, spikes: Any = spikes, potentials: Any = potentials) -> None:
            spikes.append(out.clone())
            potentials.append(m.v_seq.clone())

        hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        for batch in data:
            model(batch)
    for hook in hooks:
        hook.remove()
    scores = []
    for unit in range(group.units):
        of_neurons = []
        for emission in group.emissions:
            spikes, potentials = (torch.cat(found, dim=1) for found in stored[emission.module])
            of_positions = []
            for position in emission.index[unit].tolist():
                s, v = (t.select(emission.dim, position).double() for t in (spikes, potentials))
                of_positions.append(_one(s, v, criterion))
            of_neurons.append(sum(of_positions) / len(of_positions))
        scores.append(sum(of_neurons) / len(of_neurons))
    for name in stored:
        model.get_submodule(name).store_v_seq = False  # type: ignore[assignment]
    return scores


def _one(s: Tensor, v: Tensor, criterion: str) -> float:
    """Of one channel's spikes and potentials, shape (T, N, ...)."""
    rate = float(s.mean())
    if criterion == "rate":
        return rate
    if criterion == "rate+v":
        return rate + float(v.abs().mean())
    if criterion == "entropy":
        return sum(-p * math.log2(p) for p in (rate, 1 - rate) if p > 0)
    if criterion == "variance":
        return float(s.var(dim=0, unbiased=False).mean())
    of_samples = [float(torch.linalg.matrix_norm(one.reshape(len(one), -1), "nuc")) for one in s.unbind(1)]
    return sum(of_samples) / len(of_samples)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("name", "kwargs", "groups"),
    [
        ("spikformer-1-32", {}, ("patch_embed.stages.1.conv_bn.block.0", "blocks.0.attn.qkv_conv_bn.0")),
        ("vgg5", {"width": 0.125}, ("features.4", "classifier.1")),
    ],
)
def test_the_score_is_what_the_definition_says(
    name: str, kwargs: Mapping[str, Any], groups: tuple[str, ...], criterion: str
) -> None:
    model = firing(name, **kwargs)
    traced = trace(model, images(1))
    chosen = [traced.group(group) for group in groups]
    found = scored(model, chosen, criterion, batches())
    whole = scored(model, chosen, criterion, [torch.cat(batches())])
    for group in chosen:
        values = found[group.name]
        assert isinstance(values, Tensor) and values.shape == (group.units,) and float(values.std()) > 0
        expected = torch.tensor(by_loop(model, group, criterion, batches()), dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(whole[group.name], values, rtol=1e-5, atol=1e-7)
    assert not any(module.store_v_seq for module in spiking_neurons(model).values())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_channel_that_never_fires_ranks_last(criterion: str) -> None:
    model = firing("vgg5", width=0.125)
    traced = trace(model, images(1))
    group = traced.group("features.4")
    with torch.no_grad():
        norm = model.get_submodule("features.5")
        norm.weight[5], norm.bias[5] = 0.0, 0.0  # type: ignore[index, operator]
    values = scored(model, [group], criterion, batches())["features.4"]
    assert isinstance(values, Tensor) and int(values.argmin()) == 5 and float(values[5]) == 0.0


def test_without_spikes_the_scores_are_those_of_the_other_methods() -> None:
    model = firing("vgg5", width=0.125)
    groups = trace(model, images(1)).groups
    for name, other in (("l1", l1), ("bn-scale", bn_scale)):
        ours = spike(model, groups, Calibration(options={"criterion": name}))
        for group, values in other(model, groups, Calibration()).items():
            assert ours[group] == values if isinstance(values, str) else torch.equal(ours[group], values)  # type: ignore[arg-type]


def test_a_network_without_spiking_neurons_is_one_line() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    with pytest.raises(MethodError, match="no spiking neurons") as caught:
        prunecli.prune(net, "spike", example_inputs=images(1), data=[images(1)], ratio=0.5)
    assert "\n" not in str(caught.value)


def test_gradients_of_all_steps_belong_to_their_sample() -> None:
    """Scores of a batch equal those of its samples one by one: steps lie along the first dimension, not samples."""
    model = firing("vgg5", width=0.125)
    groups = trace(model, images(1)).groups
    data, labels = torch.cat(batches()), torch.arange(6)
    together = fisher(model, groups, Calibration(batches=[(data, labels)]))
    alone = fisher(model, groups, Calibration(batches=[(data[i : i + 1], labels[i : i + 1]) for i in range(6)]))
    for name, values in together.items():
        assert isinstance(values, Tensor) and float(values.max()) > 0
        torch.testing.assert_close(values, alone[name], rtol=1e-3, atol=1e-9)  # type: ignore[arg-type]


def test_a_network_of_ones_own_is_pruned_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 32, bias=False),
        neuron.LIFNode(step_mode="m", v_threshold=0.2),
        nn.Linear(32, 24, bias=False),
        neuron.LIFNode(step_mode="m", v_threshold=0.1),
        nn.Linear(24, 4),
    )
    frames = torch.randn(4, 8, 12)
    how = {"ratio": 0.5, "scope": "local", "prune_stem": True, "round_to": 1}
    result = prunecli.prune(net, "spike", example_inputs=frames, data=[frames], **how)
    assert result.model[0].weight.shape == (16, 12)  # type: ignore[index, union-attr]
    assert result.report.verify_error == 0.0
    for network in (net, result.model):
        assert not network._forward_hooks and not network._forward_pre_hooks
        assert not isinstance(network[1].v, Tensor)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("name", "neurons"), [("spikformer-1-32", {"qkv_lif"}), ("sdt-2-64", {"q_lif", "k_lif", "v_lif"})]
)
def test_attention_is_scored_at_queries_keys_and_values(name: str, neurons: set[str]) -> None:
    traced = trace(firing(name), images(1))
    group = next(group for group in traced.groups if ".attn." in group.name)
    assert {emission.module.rpartition(".")[2] for emission in group.emissions} == neurons


class _Outer(nn.Module):
    """Two layers whose channels are the rows and the columns of what one neuron layer gives out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(6, 10), nn.Linear(6, 12)
        self.of_rows, self.of_columns = nn.Linear(10, 5), nn.Linear(12, 5)
        self.spikes = neuron.LIFNode(step_mode="m", v_threshold=0.3)

    def forward(self, x: Tensor) -> Tensor:
        summed = self.rows(x).unsqueeze(-1) + self.columns(x).unsqueeze(-2)  # (T, N, 10, 12)
        spikes = self.spikes(summed)
        return (self.of_rows(spikes.mean(3)) + self.of_columns(spikes.mean(2))).mean(0)  # type: ignore[no-any-return]


def test_a_neuron_may_give_out_two_kinds_of_channels() -> None:
    torch.manual_seed(0)
    model, x = _Outer().eval(), torch.randn(4, 8, 6)
    reset_itself(model)
    traced = trace(model, x, prune_stem=True)
    dims = {group.name: [emission.dim for emission in group.emissions] for group in traced.groups}
    assert dims == {"rows": [2], "columns": [3]}
    scores = scored(model, traced.groups, "rate", [x])
    seen: list[Tensor] = []
    model.spikes.register_forward_hook(lambda m, a, out: seen.append(out))
    model(x)
    assert torch.allclose(scores["rows"], seen[0].mean((0, 1, 3)).double())  # type: ignore[arg-type]
    assert torch.allclose(scores["columns"], seen[0].mean((0, 1, 2)).double())  # type: ignore[arg-type]


def _small(kind: Any) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), kind(step_mode="m"), nn.Linear(12, 3)).eval()
    reset_itself(model)
    return model


def test_spikes_of_minus_one_are_spikes() -> None:
    model, half = _small(neuron.TernaryIFNode), 4 * torch.randn(4, 6, 8)
    x = torch.cat([half, -half], dim=1)
    model[0].bias.data.zero_()  # type: ignore[union-attr]
    traced = trace(model, x, prune_stem=True)
    for criterion in ("rate", "entropy", "variance"):
        score = scored(model, traced.groups, criterion, [x])["0"]
        assert isinstance(score, Tensor) and (score > 0).any()


def test_neurons_without_what_a_criterion_needs_are_named() -> None:
    x = torch.randn(4, 2, 8)
    simple = _small(lambda step_mode: neuron.SimpleLIFNode(tau=2.0, decay_input=True, step_mode=step_mode))
    with pytest.raises(MethodError, match="1 is a SimpleLIFNode, which does not keep the potentials"):
        scored(simple, trace(simple, x, prune_stem=True).groups, "rate+v", [x])
    with pytest.raises(MethodError, match="1 is a PSN, whose spikes cannot be watched"):
        scored(_small(lambda step_mode: neuron.PSN(T=4)), [], "rate", [x])
