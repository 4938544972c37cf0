"""Masks of weights and spikes: soft, hard, counted, held and saved."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import prunecli
from prunecli.checkpoint.io import read_checkpoint, write_checkpoint
from prunecli.checkpoint.manifest import Masks
from prunecli.checkpoint.masks import bits_name
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.holding import HoldZeros
from prunecli.engine.optimizer import make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError, ModelError
from prunecli.models.loading import load_file, load_reference, save
from prunecli.sparsity.connections import count_connections, wiring_of
from prunecli.sparsity.penalty import Penalty
from prunecli.sparsity.soft_masks import SoftMask, harden_weight, soften_weight
from prunecli.sparsity.spike_masks import mask_spikes, masked_spikes
from prunecli.sparsity.temperature import temperatures

STEPS = 2


class Spiking(nn.Module):
    """Stride, padding, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            layer.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
            neuron.IFNode(),
            layer.Conv2d(3, 4, 3, padding=1),
            layer.BatchNorm2d(4),
            neuron.IFNode(),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Linear(16, 5),
            neuron.IFNode(),
            layer.Linear(5, 2),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        scores: Tensor = self.net(x.expand(STEPS, *x.shape)).mean(dim=0)
        return scores


def _conv_edges(weight: Tensor, before: Tensor, behind: Tensor, stride: int) -> int:
    """Edges of a convolution with padding 1, one by one."""
    edges = 0
    outs, ins, height, width = weight.shape
    for o, i, a, b in itertools.product(range(outs), range(ins), range(height), range(width)):
        for y, x in itertools.product(range(behind.shape[1]), range(behind.shape[2])):
            row, column = y * stride + a - 1, x * stride + b - 1
            inside = 0 <= row < before.shape[1] and 0 <= column < before.shape[2]
            edges += int(bool(weight[o, i, a, b] and inside and before[i, row, column] and behind[o, y, x]))
    return edges


def _linear_edges(weight: Tensor, before: Tensor, behind: Tensor) -> int:
    return sum(
        int(bool(weight[o, i] and before[i] and behind[o]))
        for o, i in itertools.product(range(weight.shape[0]), range(weight.shape[1]))
    )


@pytest.mark.parametrize("density", [1.0, 0.6, 0.2])
def test_connections_are_those_of_a_loop(density: float) -> None:
    torch.manual_seed(0)
    model, x = Spiking().eval(), torch.rand(3, 1, 8, 8)
    wiring = wiring_of(model, x)
    assert wiring.shapes == {"net.1": (3, 4, 4), "net.4": (4, 4, 4), "net.8": (5,)}
    layers = {name: model.get_submodule(name).weight for name in ("net.0", "net.2", "net.7", "net.9")}
    weights = {name: torch.rand_like(weight) < density for name, weight in layers.items()}  # type: ignore[arg-type]
    spikes = {name: torch.rand(shape) < density for name, shape in wiring.shapes.items()}
    pooled = nn.functional.max_pool2d(spikes["net.4"].float(), 2).flatten() > 0
    expected = {
        "net.0": _conv_edges(weights["net.0"], torch.ones(1, 8, 8), spikes["net.1"], 2),
        "net.2": _conv_edges(weights["net.2"], spikes["net.1"], spikes["net.4"], 1),
        "net.7": _linear_edges(weights["net.7"], pooled, spikes["net.8"]),
        "net.9": _linear_edges(weights["net.9"], spikes["net.8"], torch.ones(2)),
    }
    assert count_connections(model, x, wiring, weights, spikes) == expected
    if density == 1:
        assert wiring.edges == expected


def test_the_open_penalty_counts_every_connection_twice_and_padding_once() -> None:
    """From weights: each weight as often as it is used; from neurons: the connections that leave them, exactly."""
    model, x = Spiking().eval(), torch.rand(1, 1, 8, 8)
    wiring = wiring_of(model, x)
    weights = {name: SoftMask(torch.zeros(model.get_submodule(name).weight.shape)) for name in wiring.edges}  # type: ignore[arg-type]
    neurons = {name: SoftMask(torch.zeros(shape)) for name, shape in wiring.shapes.items()}
    assert wiring.positions == {"net.0": 16, "net.2": 16, "net.7": 1, "net.9": 1}
    leaving = {"net.1": wiring.edges["net.2"], "net.4": wiring.edges["net.7"], "net.8": wiring.edges["net.9"]}
    for name, edges in leaving.items():
        assert wiring.fan_out[name] * neurons[name].scores.numel() == pytest.approx(edges)
    penalty = Penalty(wiring, weights, neurons, by_rate=False)
    assert float(penalty({})) == pytest.approx(0.5)  # sigmoid(0) of everything
    weights["net.2"].scores.fill_(100)
    of_weights = {name: wiring.positions[name] * mask.scores.numel() for name, mask in weights.items()}
    whole = sum(of_weights.values()) + sum(leaving.values())
    assert float(penalty({})) == pytest.approx(0.5 + 0.5 * of_weights["net.2"] / whole)
    by_rate = Penalty(wiring, weights, neurons, by_rate=True)
    rates = dict.fromkeys((*weights, *neurons), 0.0) | {"net.2": 0.3}
    assert float(by_rate(rates)) == pytest.approx(1.0), "the only layer with a rate is open"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((5, 1000), [(0, 5, 5), (5, 5 * 200**0.5, 5 * 200**0.5), (10, 1000, 1000), (12, 1000, 1000)]),
        ((5, 1000, 2, 8), [(0, 5, 5), (2, 5, 5), (5, 5 * 200**0.5, 5 * 200**0.5), (8, 1000, 1000), (10, 1000, 1000)]),
        ((1, 2, 100, 200, 0, 4), [(0, 1, 2), (1, 100**0.25, 2 * 100**0.25), (4, 100, 200)]),
    ],
)
def test_the_temperature_follows_its_formula(
    values: tuple[float, ...], expected: list[tuple[float, float, float]]
) -> None:
    weights, neurons = temperatures(values, 10)
    for epoch, of_weights, of_neurons in expected:
        assert weights.at(epoch) == pytest.approx(of_weights) and neurons.at(epoch) == pytest.approx(of_neurons)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5,), "has 1 values; give 2, 4 or 6"),
        ((1000, 5), "falls from 1000 to 5"),
        ((5, 1000, 8, 2), "from epoch 8 to 2 is no time"),
        ((1, 9, 10, 8, 0, 4), "falls from 9 to 8"),
        ((0, 9), "falls from 0 to 9"),
    ],
)
def test_a_wrong_temperature_is_one_line(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        temperatures(values, 10)


def test_a_soft_mask_hardens_to_the_sign_of_its_scores() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    weight, scores = linear.weight.detach().clone(), torch.randn(4, 6)
    mask = soften_weight(linear, scores)
    mask.temperature = 3.0
    assert torch.allclose(linear.weight, weight * torch.sigmoid(3 * scores))
    assert not mask.scores.requires_grad, "an optimizer of the network leaves scores out"
    scores_taking = mask.learn()
    linear(torch.ones(2, 6)).sum().backward()
    share = torch.sigmoid(3 * scores)
    assert scores_taking.grad is not None
    assert torch.allclose(scores_taking.grad, 2 * weight * 3 * share * (1 - share), atol=1e-6)
    harden_weight(linear)
    assert torch.equal(linear.weight, weight * (scores > 0)) and type(linear) is nn.Linear
    nothing = SoftMask(torch.full((2, 3), -1.0))
    nothing.hard = True
    assert int(nothing.share.sum()) == 1, "one is always left"


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("sgd", {"momentum": 0.9, "weight_decay": 0.1}), ("adamw", {"weight_decay": 0.1}), ("adam", {}), ("lamb", {})],
)
def test_no_optimizer_revives_a_masked_weight(optimizer: str, settings: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(8, 4) < 0.5)  # type: ignore[operator]
    zeros = model[0].weight == 0
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4)]
    config = FitConfig(epochs=3, lr=0.05, optimizer=optimizer, **settings)  # type: ignore[arg-type]
    hooks = [HoldZeros(model, ["0.weight"])]
    fit(model, batches, None, config, torch.device("cpu"), task=Classification.with_classes(3), hooks=hooks)
    assert bool((model[0].weight[zeros] == 0).all()) and bool((model[0].weight[~zeros] != 0).all())  # type: ignore[index]


def test_moments_from_before_do_not_revive_a_masked_weight() -> None:
    torch.manual_seed(0)
    model, task = nn.Sequential(nn.Linear(4, 3)), Classification.with_classes(3)
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(4)]
    config, device = FitConfig(epochs=1, lr=0.05, momentum=0.9), torch.device("cpu")
    optimizer = make_optimizer(model, config)
    fit(model, batches, None, config, device, task=task, optimizer=optimizer)
    with torch.no_grad():
        model[0].weight[:, :2] = 0  # type: ignore[index]
    hooks = [HoldZeros(model, ["0.weight"])]
    fit(model, batches, None, config, device, task=task, optimizer=optimizer, hooks=hooks)
    assert not model[0].weight[:, :2].any() and bool(model[0].weight[:, 2:].all())  # type: ignore[index]


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A checkpoint of a spiking network with masks of both kinds."""
    torch.manual_seed(0)
    loaded = load_reference("spiking:vgg5", num_classes=4, in_chans=1, image_size=8, width=0.125, v_threshold=0.02)
    names = [name for name, parameter in loaded.model.named_parameters() if parameter.dim() > 1]
    with torch.no_grad():
        for name in names:
            parameter = loaded.model.get_parameter(name)
            parameter.mul_(torch.rand_like(parameter) < 0.5)
    spikes = wiring_of(loaded.model, torch.rand(1, 1, 8, 8)).shapes
    for name, shape in spikes.items():
        mask_spikes(loaded.model.get_submodule(name), torch.rand(shape) < 0.5)
    loaded.manifest.masks = Masks(weights=names, spikes=spikes)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(tmp_path / "masked.safetensors", loaded.model, loaded.manifest)
    torch.save(loaded.model, tmp_path / "whole.pt")
    return tmp_path / "masked.safetensors"


def test_masks_are_saved_as_bits_and_come_back(masked: Path) -> None:
    before = torch.load(masked.with_name("whole.pt"), weights_only=False)  # written by this test
    after = load_file(masked)
    assert after.manifest.masks is not None
    for name, mask in masked_spikes(before).items():
        assert torch.equal(masked_spikes(after.model)[name], mask)
    x = 20 * torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(before(x), after.model(x)) and bool(after.model(x).any())
    manifest, stored = read_checkpoint(masked)
    for name in manifest.masks.weights if manifest.masks else ():
        assert stored[bits_name(name)].numel() == -(-stored[name].numel() // 8)


def test_masks_that_do_not_fit_the_weights_are_refused(masked: Path) -> None:
    manifest, stored = read_checkpoint(masked)
    assert manifest.masks is not None
    name = manifest.masks.weights[0]
    for change, message in (
        ({bits_name(name): torch.zeros_like(stored[bits_name(name)])}, f"{name} has a masked weight that is not zero"),
        ({bits_name(name): stored[bits_name(name)][:-1]}, "is missing or has another size"),
        ({"features.2.spike_mask": torch.zeros(3, dtype=torch.uint8)}, "is missing or has another size"),
    ):
        write_checkpoint(masked.with_name("altered.safetensors"), {**stored, **change}, manifest)
        with pytest.raises(ModelError, match=f"the masks do not fit the checkpoint: .*{message}"):
            load_file(masked.with_name("altered.safetensors"))
    other = manifest.model_copy(update={"masks": Masks(weights=manifest.masks.weights, spikes={"nowhere": (3,)})})
    write_checkpoint(masked.with_name("altered.safetensors"), stored, other)
    with pytest.raises(ModelError, match="the masks do not fit the network: it has no module 'nowhere'"):
        load_file(masked.with_name("altered.safetensors"))


def test_channels_are_removed_from_a_masked_network_with_their_masks(masked: Path) -> None:
    model = load_file(masked).model
    x = 20 * torch.rand(4, 1, 8, 8)
    result = prunecli.prune(model, "l1", example_inputs=x, ratio=0.5)
    for edit in result.report.edits:
        assert edit.width_after < edit.width_before
    before, after = masked_spikes(model), masked_spikes(result.model)
    kept = {edit.group: edit.keep_indices for edit in result.report.edits}
    assert torch.equal(after["features.6"], before["features.6"][kept["features.4"]])
