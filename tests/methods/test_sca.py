"""`prune sca`: gates and their gradients, scores, how many channels stay and come back, and what is left at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.hooks import Batch, Training
from prunecli.engine.optimizer import make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError
from prunecli.measure.neurons import reset_itself
from prunecli.methods.layer_lists import chosen_layers
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import select
from prunecli.methods.request import PruneRequest
from prunecli.methods.sca import Sca
from prunecli.methods.sca_choice import Prunings, choose
from prunecli.methods.sca_params import ScaParams
from prunecli.methods.trained import Removal, TrainedContext, remove_kept
from prunecli.surgery.gates import ChannelGate, gate_points, reading_points
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.proof.verify import differs_from_removal
from tests.conftest import Prune
from tests.processes import Processes
from tests.unit.networks import Depthwise, Flattened, Plain, Residual, example
from tests.unit.test_engine import CPU
from tests.unit.test_spiking_models import images, made

TASK = Classification.with_classes(10)
VGG = ("--model-kwargs", "width=0.0625", "--model-kwargs", "image_size=8")


def _context(model: nn.Module, inputs: Tensor, *, stem: bool = True, epochs: int = 3) -> TrainedContext:
    request = PruneRequest(method="l1", params=StructuralParams(prune_stem=stem), example_inputs=inputs)
    return TrainedContext(select(model, request), inputs, torch.Generator().manual_seed(0), epochs)


def _started(hook: Sca, model: nn.Module, config: FitConfig | None = None) -> torch.optim.Optimizer:
    """Begins training, without `fit`."""
    optimizer = make_optimizer(model, config or FitConfig(lr=0.05))
    hook.begin(Training(model, optimizer, CPU, 3, 4, 10))
    return optimizer


def _step(hook: Sca, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    loss = hook.loss(F.cross_entropy(model(x), labels), Batch(x, labels, x))
    loss.backward()  # type: ignore[no-untyped-call]
    hook.before_step()
    optimizer.step()
    hook.after_step()
    optimizer.zero_grad()


def _close(hook: Sca, seed: int = 0) -> None:
    """Closes about half of all channels."""
    generator = torch.Generator().manual_seed(seed)
    for gate in hook._gates.values():
        opened = torch.rand(gate.group.units, generator=generator) > 0.5
        opened[0] = True
        gate.open_only(opened)


def _unlike(model: nn.Module) -> nn.Module:
    """Normalisations with scales, shifts and statistics that are not those of a new one."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.3)
    return model


class Spiking(nn.Module):
    """Two convolutions with normalisations and neurons, and a classifier; takes frames (N, T, C, H, W)."""

    def __init__(self, v_reset: float | None = 0.0, threshold: float = 1.0) -> None:
        super().__init__()

        def lif() -> nn.Module:
            settings = {"v_threshold": threshold, "v_reset": v_reset, "surrogate_function": surrogate.ATan()}
            return neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m", **settings)

        self.a, self.an, self.av = layer.Conv2d(2, 8, 3), layer.BatchNorm2d(8), lif()
        self.b, self.bn, self.bv = layer.Conv2d(8, 12, 3), layer.BatchNorm2d(12), lif()
        self.head = layer.Linear(12, 10)
        functional.set_step_mode(self, "m")
        reset_itself(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.av(self.an(self.a(x.transpose(0, 1))))
        return self.head(self.bv(self.bn(self.b(x))).mean((3, 4))).mean(0)  # type: ignore[no-any-return]


def _frames(count: int = 3) -> Tensor:
    return 2 * torch.rand(count, 4, 2, 8, 8, generator=torch.Generator().manual_seed(5))


def _gate(model: nn.Module, inputs: Tensor, name: str) -> ChannelGate:
    traced = _context(model, inputs).selection.trace
    assert traced.followed is not None
    group = traced.group(name)
    points_of = gate_points if isinstance(model, Spiking) else reading_points
    gate = ChannelGate(group, points_of(model, group, traced.followed))
    gate.factors = gate.factors.detach().double().requires_grad_()
    return gate


def test_the_gradient_of_a_gate_is_the_difference_quotient() -> None:
    torch.manual_seed(0)
    model = _unlike(Residual()).double().eval()
    x, labels = example().double(), torch.tensor([3, 7])
    gate = _gate(model, x, "b")  # a residual stream: closed in front of each layer that reads it
    assert [point.module for point in gate.points] == ["c", "head.fc"]
    gate.attach(model)
    gate.open_only(torch.arange(32) % 3 > 0)
    F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    gradient, quotients = gate.taken_gradient(), []
    with torch.no_grad():
        for unit in range(32):
            values = []
            for change in (1e-5, -1e-5):
                gate.factors[unit] += change
                values.append(float(F.cross_entropy(model(x), labels)))
                gate.factors[unit] -= change
            quotients.append((values[0] - values[1]) / 2e-5)
    assert gradient is not None and gate.taken_gradient() is None
    assert float(gradient[::3].abs().min()) > 1e-6  # those that are closed have one
    assert torch.allclose(gradient, torch.tensor(quotients, dtype=torch.float64), rtol=1e-5, atol=1e-9)


def test_the_gradient_in_a_spiking_network_is_that_of_a_multiplication() -> None:
    torch.manual_seed(0)
    model = _unlike(Spiking()).double().train()
    x, labels = _frames().double(), torch.tensor([3, 7, 1])
    gate = _gate(model, x, "a")
    gate.open_only(torch.arange(8) % 2 == 0)
    own = gate.factors.detach().clone().requires_grad_()
    functional.reset_net(model)
    steps = model.av(model.an(model.a(x.transpose(0, 1))) * own.view(1, 1, 8, 1, 1))  # type: ignore[operator]
    scores = model.head(model.bv(model.bn(model.b(steps))).mean((3, 4))).mean(0)  # type: ignore[operator]
    (expected,) = torch.autograd.grad(F.cross_entropy(scores, labels), own)
    functional.reset_net(model)
    gate.attach(model)
    F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    gradient = gate.taken_gradient()
    assert gradient is not None and torch.allclose(gradient, expected, rtol=1e-9, atol=1e-15)
    assert float(expected[1::2].abs().min()) > 0


def test_scores_are_those_of_a_loop_over_spikes_and_potentials() -> None:
    torch.manual_seed(0)
    model = _unlike(Spiking())
    hook = Sca(model, ScaParams(min_width=1), _context(model, _frames()))
    _started(hook, model)
    taken: list[Tensor] = []
    model.bv.register_forward_pre_hook(lambda module, args: taken.append(args[0].detach()))  # type: ignore[operator]
    hook.epoch_start(1, 0)
    for count in (3, 2):
        model.train()(_frames(count))
    hook._watching.close()
    model.eval()(_frames(3))  # validation: not watched
    own = []
    for steps in taken[:2]:
        potential, total = torch.zeros_like(steps[0]), torch.zeros(12, dtype=torch.float64)
        for current in steps:
            potential = potential + (current - potential) / 2.0
            spikes = (potential >= 1.0).to(current)
            potential = potential * (1 - spikes)
            total += (spikes + potential.abs()).double().mean((0, 2, 3))
        own.append(total / len(steps))
    means = {name: total / hook._calls[name] for name, total in hook._sums.items()}
    scores = hook._activity.scores(means)
    assert torch.allclose(scores["b"], torch.stack(own).mean(0), rtol=1e-6)
    assert hook._calls["bv:2"] == 2 and float(scores["b"].std()) > 0.01


def test_without_neurons_activations_count() -> None:
    torch.manual_seed(0)
    model = _unlike(Flattened())
    hook = Sca(model, ScaParams(), _context(model, example()))
    _started(hook, model)
    taken: list[Tensor] = []
    model.fc1.register_forward_pre_hook(lambda module, args: taken.append(args[0].detach()))
    hook.epoch_start(1, 0)
    for seed in range(2):
        model.train()(example() + seed)
    own = torch.stack([x.view(-1, 16, 16).abs().double().mean((0, 2)) for x in taken]).mean(0)
    means = {name: total / hook._calls[name] for name, total in hook._sums.items()}
    assert torch.allclose(hook._activity.scores(means)["a"], own, rtol=1e-6)


def test_silence_is_no_activity() -> None:
    torch.manual_seed(0)
    model = _unlike(Spiking(v_reset=-3.0))  # |v| of a neuron without input comes close to 3
    hook = Sca(model, ScaParams(keep_share=0.5, regrow_share=0, min_width=1), _context(model, _frames()))
    _started(hook, model)
    for gate in hook._gates.values():
        gate.open_only(torch.arange(gate.group.units) % 4 > 0)
    before = {name: gate.opened for name, gate in hook._gates.items()}
    hook.epoch_start(1, 0)
    model.train()(_frames())
    hook.before_step()
    hook.epoch_end(1)
    assert all(not bool((gate.opened & ~before[name]).any()) for name, gate in hook._gates.items())
    assert sum(int(gate.opened.sum()) for gate in hook._gates.values()) == 10


def test_a_connectivity_above_the_first_share_is_reached_by_regrowing() -> None:
    torch.manual_seed(0)
    model = Plain()
    params = ScaParams(keep_share=0.2, regrow_share=0.1, connectivity=0.9)
    hook = Sca(model, params, _context(model, example(), epochs=2))
    fit(model, _batches(), None, FitConfig(epochs=2, lr=0.01), CPU, task=TASK, hooks=[hook])
    assert [entry["alive"] for entry in hook._history] == [20, 65]
    assert [entry["regrown"] for entry in hook._history] == [6, 45]


class Useful(nn.Module):
    """Channel 5 is normalised to next to nothing, until its scale grows; the classes are what it carries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def _useful() -> tuple[Useful, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = Useful(), torch.randn(32, 1, 4, 4)
    with torch.no_grad():
        model.stem.weight.copy_(torch.linspace(0.5, 1.0, 8).view(8, 1, 1, 1))
        model.head.weight *= 0.01
        model.norm.weight[5], model.head.weight[:, 5] = 1e-4, torch.tensor([3.0, -3.0])
    return model, x, (x.mean((1, 2, 3)) > 0).long()


def test_a_pruned_channel_that_is_missed_comes_back() -> None:
    model, x, labels = _useful()
    hook = Sca(model, ScaParams(keep_share=0.75, regrow_share=0.5, min_width=1), _context(model, x, epochs=3))
    optimizer = _started(hook, model, FitConfig(lr=1e-4))
    gate = next(iter(hook._gates.values()))
    gate.open_only(torch.arange(8) != 5)
    with torch.no_grad():
        model.norm.weight[5] = 2.0  # the dense weights moved on: now it would be useful
    before = model.norm.weight.detach().clone()
    hook.epoch_start(1, 0)
    _step(hook, model.train(), optimizer, x, labels)
    assert torch.equal(model.norm.weight[5], before[5])  # no gradient reaches what is closed, but its gate has one
    pull = hook._pull[gate.group.name].clone()
    hook.epoch_end(1)
    assert int(pull.argmax()) == 5 and bool(gate.opened[5]) and bool(hook._regrown[gate.group.name][5])
    assert int(gate.opened.sum()) == 6 + 1
    # With zeros in place of the weights, the scale's own gradient is zero, and nothing could come back.
    twin, x, labels = _useful()
    with torch.no_grad():
        twin.norm.weight[5], twin.stem.weight[5] = 2.0, 0.0
    F.cross_entropy(twin.train()(x), labels).backward()  # type: ignore[no-untyped-call]
    assert twin.norm.weight.grad is not None and float(twin.norm.weight.grad[5]) == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_no_optimizer_revives_a_closed_channel(optimizer: str) -> None:
    torch.manual_seed(0)
    model = _unlike(Plain())
    hook = Sca(model, ScaParams(l1=1e-2), _context(model, example()))
    chosen = FitConfig(lr=0.05, optimizer=optimizer, momentum=0.9, weight_decay=0.1)
    stepping = _started(hook, model, chosen)
    x, labels = example(), torch.tensor([1, 2])
    hook.epoch_start(1, 0)
    model.train()
    for _ in range(3):
        _step(hook, model, stepping, x, labels)  # moments of channels that will be closed
    _close(hook)
    closed = ~hook._gates["body.3"].opened
    before = model.body[3].weight.detach().clone()
    seen: list[Tensor] = []
    model.body[6].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for _ in range(4):
        _step(hook, model, stepping, x, labels)
        model.eval()(x)
        model.train()
    assert len(seen) == 8 and all(not output[:, closed].any() for output in seen)
    assert all(bool(output[:, ~closed].any()) for output in seen)
    assert not torch.equal(model.body[3].weight[closed], before[closed])  # the weights move, the gate holds
    assert bool(model.body[3].weight[closed].any())
    assert "factors" not in " ".join(model.state_dict()) and all(
        parameter is not gate.factors for gate in hook._gates.values() for parameter in model.parameters()
    )


def test_the_penalty_is_on_scales_in_front_of_gates() -> None:
    torch.manual_seed(0)
    model = _unlike(Plain())
    hook = Sca(model, ScaParams(l1=0.5), _context(model, example(), stem=False))
    batch = Batch(example(), torch.tensor([1, 2]), torch.zeros(2, 10))
    scales = model.body[4].weight.abs().sum() + model.body[7].weight.abs().sum()  # type: ignore[operator,union-attr]
    assert float(hook.loss(torch.tensor(1.0), batch).detach()) == pytest.approx(1 + 0.5 * float(scales.detach()))


def test_a_difference_that_is_lost_further_on_is_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 10)
    ).eval()
    with torch.no_grad():
        model[2].bias -= 100  # type: ignore[operator]
    trace = _context(model, example()).selection.trace
    keep = {"0": torch.arange(0, 8, 2)}
    assert differs_from_removal(model, lambda network: network, trace, keep, example())

    def closed(network: nn.Module) -> nn.Module:
        gate = ChannelGate(trace.group("0"), reading_points(network, trace.group("0"), trace.followed))  # type: ignore[arg-type]
        gate.open_only(torch.arange(8) % 2 == 0)
        gate.attach(network)
        return network

    assert not differs_from_removal(model, closed, trace, keep, example())


def _vgg9() -> tuple[nn.Module, Tensor]:
    return made("vgg9", T=2, width=0.0625, image_size=16), torch.rand(2, 3, 16, 16)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "plain": lambda: (Plain(), example()),
    "residual": lambda: (Residual(), example()),
    "depthwise": lambda: (Depthwise(), example()),
    "flattened": lambda: (Flattened(), example()),
    "vgg9": _vgg9,
    "vgg5-soft-reset": lambda: (made("vgg5", T=2, width=0.125, neuron="if", v_reset=None), images(2)),
    "resnet19": lambda: (made("resnet19", T=2, width=0.0625), images(1, 8)),
    "spikformer": lambda: (made("spikformer-1-32", T=1), images(1)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("vgg9", "resnet19") else ()) for name in NETWORKS]
)
def test_the_gated_network_is_the_pruned_network(name: str) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    model, x = _unlike(model).double().eval(), x.double()
    active = with_active_neurons(model, model, x)
    model = active[0] if active is not None else model
    context = _context(model, x)
    hook = Sca(model, ScaParams(), context)
    assert len(hook._gates) == len(context.selection.groups) and not hook._left_alone
    with torch.no_grad():
        dense = model(x)
    _started(hook, model)
    _close(hook)
    with torch.no_grad():
        gated = model(x)
    opened = {parameter: value.detach().clone() for parameter, value in model.named_parameters()}
    hook.end()
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        folded = model(x)
    removal = Removal(method="sca", selection=context.selection, example_inputs=x)
    pruned = remove_kept(model, hook.keep(), removal)
    with torch.no_grad():
        small = pruned.model(x)
    assert float((gated - folded).abs().max()) == 0 and float((gated - small).abs().max()) < 1e-6
    assert float((gated - dense).abs().max()) > 1e-4
    assert {edit.group: edit.width_after for edit in pruned.report.edits} == {
        key: int(gate.opened.sum()) * gate.group.channels_per_unit
        for key, gate in hook._gates.items()
        if not bool(gate.opened.all())
    }
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, opened[key])]
    assert moved and all(bool((value == 0).any()) for key, value in model.named_parameters() if key in moved)


def test_a_group_where_closing_is_not_removing_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(768, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid(),
        nn.Linear(16, 10),
    )  # fmt: skip
    hook = Sca(model, ScaParams(), _context(model, example()))
    assert list(hook._gates) == ["4"]  # a sigmoid of zero is no zero, but the gate stands behind it
    assert hook._left_alone == {"1": "closing its channels is not the same as removing them"}
    assert hook.figures()["left_alone"] == hook._left_alone and "1" not in hook.keep()


def test_gates_stand_behind_the_last_normalisation_on_every_way() -> None:
    model = made("resnet19", T=1, width=0.0625)
    trace = _context(model, images(1, 8)).selection.trace
    assert trace.followed is not None  # the block adds in place, which writes to what bn2 returned
    points = gate_points(model, trace.group("conv1"), trace.followed)
    assert [point.module for point in points] == ["bn1", "layers.0.0.bn2", "layers.0.1.bn2", "layers.0.2.bn2"]
    depthwise = Depthwise()
    trace = _context(depthwise, example()).selection.trace
    assert trace.followed is not None  # its own normalisation is behind the depthwise convolution
    assert [point.module for point in gate_points(depthwise, trace.group("expand"), trace.followed)] == ["norm"]
    inverted = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1), nn.Flatten(),
        nn.Linear(8 * 144, 10),
    )  # fmt: skip
    trace = _context(inverted, example()).selection.trace
    assert trace.followed is not None
    assert [point.module for point in gate_points(inverted, trace.group("1"), trace.followed)] == ["5"]


@pytest.mark.parametrize(("keep", "regrow", "kept", "back"), [(0.8, 0.1, 80, 2), (0.5, 0.25, 50, 12), (0.0, 1, 8, 92)])
def test_how_many_stay_and_come_back(keep: float, regrow: float, kept: int, back: int) -> None:
    prunings = Prunings(ScaParams(keep_share=keep, regrow_share=regrow), epochs=3, total=100, least=8)
    assert [prunings.counts(epoch) for epoch in (1, 2, 3)] == [(kept, back)] * 3


def test_the_connectivity_is_approached_on_a_line() -> None:
    params = ScaParams(connectivity=0.3, prune_every=2, prune_epochs=9)
    prunings = Prunings(params, epochs=20, total=1000, least=8)
    assert prunings.count == 4 and prunings.last == 8
    assert [epoch for epoch in range(1, 21) if prunings.due(epoch)] == [2, 4, 6, 8]
    counts = [prunings.counts(epoch) for epoch in (2, 4, 6, 8)]
    assert [sum(pair) for pair in counts] == [820, 647, 473, 300]
    assert all(abs(back - 0.1 * (1000 - kept)) < 1 for kept, back in counts)
    once = Prunings(ScaParams(connectivity=0.05), epochs=1, total=100, least=5)
    assert once.counts(1) == (5, 0)


def test_what_is_chosen() -> None:
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([0.1, 0.3, 0.2, 0.0])}
    pull = {"a": torch.tensor([0.0, 0.0, 5.0, 1.0]), "b": torch.tensor([2.0, 9.0, 0.0, 3.0])}
    choice = choose(scores, pull, {"a": 1, "b": 1}, kept=3, regrown=2)
    assert choice.opened["a"].tolist() == [True, True, True, False]  # 0 and 1 by activity, 2 by its gradient
    assert choice.opened["b"].tolist() == [False, True, False, True]  # 1 because a layer keeps one
    assert choice.regrown["a"].tolist() == [False, False, True, False]
    assert choice.regrown["b"].tolist() == [False, False, False, True]
    nothing = {name: torch.zeros(4) for name in scores}
    opened = choose(scores, nothing, {"a": 1, "b": 1}, kept=3, regrown=2).opened
    assert int(opened["a"].sum()) + int(opened["b"].sum()) == 5


def test_nodes_are_numbers_ranges_and_patterns() -> None:
    names = [f"n{index}" for index in range(12)]

    def chosen(*words: str) -> set[str]:
        return set(chosen_layers(names, words, "--pruning-nodes", "spiking neurons", ["conv"]))

    assert chosen("0,3,5") == {"n0", "n3", "n5"} == chosen("0", "3", "5") == chosen("[0, 3, 5]")
    assert chosen("0-2") == {"n0", "n1", "n2"} == chosen("0:3")
    assert chosen("n1[01]", "c*") == {"n10", "n11", "conv"}
    for word in ("12", "3-12", "3:13", "5-3", "x*", "1.5"):
        with pytest.raises(MethodError, match="no such layer; the network has 12 spiking neurons"):
            chosen(word)


def test_only_named_nodes_take_part() -> None:
    model = made("vgg9", T=2, width=0.0625, image_size=16)
    context = _context(model, torch.rand(1, 3, 16, 16))
    hook = Sca(model, ScaParams(pruning_nodes=("1,3", "classifier.*")), context)
    assert list(hook._gates) == ["features.4", "features.11", "classifier.1"]
    assert set(hook.keep()) == set(hook._gates) and len(hook._left_alone) == 5
    plain = Plain()
    hook = Sca(plain, ScaParams(pruning_nodes=("1:3",)), _context(plain, example()))
    assert list(hook._gates) == ["body.3", "body.6"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pruning_nodes": ("13",)}, "--pruning-nodes 13: there is no such layer; the network has 3 layers that may"),
        ({"keep_share": 1.5}, "sca: keep_share 1.5 is not a share; give a number from 0 to 1"),
        ({"connectivity": 0.1}, "leaves 7 of 72 channels, but with min_width 4 layers keep 12; lower min_width"),
        ({"prune_epochs": 9}, "sca: 9 prune_epochs are more than the 3 epochs of the run"),
        ({"prune_every": 5}, "with a pruning every 5 epochs there is none in 3; lower prune_every"),
    ],
)
def test_what_does_not_fit_is_refused(params: dict[str, Any], message: str) -> None:
    model = Plain()
    with pytest.raises(MethodError) as refused:
        Sca(model, ScaParams(**params), _context(model, example()))
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_network_without_layers_to_prune_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))
    with pytest.raises(MethodError, match=r"sca has no layer to prune: .*; use another method"):
        Sca(model, ScaParams(), _context(model, example(), stem=False))


def test_neurons_that_fire_without_input_are_refused() -> None:
    model = Spiking(v_reset=1.5)
    with pytest.raises(MethodError, match=r"av is a LIFNode that fires without input .*; lower v_reset or raise"):
        Sca(model, ScaParams(), _context(model, _frames()))
    Sca(Spiking(v_reset=-0.5), ScaParams(), _context(model, _frames()))


def _batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 10, (8,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize(("connectivity", "alive"), [(0.4, 29), (None, 59), (0.9, 65)])
def test_training_ends_with_that_many_channels(connectivity: float | None, alive: int) -> None:
    torch.manual_seed(0)
    model = Plain()
    params = ScaParams(connectivity=connectivity, prune_epochs=3)
    hook = Sca(model, params, _context(model, example(), epochs=5))
    chosen = fit(model, _batches(), _batches(1), FitConfig(epochs=5, lr=0.01), CPU, task=TASK, hooks=[hook])
    keep, figures = hook.keep(), hook.figures()
    assert sum(len(units) for units in keep.values()) == alive == figures["alive"]
    assert figures["pruned"] == 72 - alive and figures["channels"] == 72 and chosen.chosen >= 3
    assert [entry["epoch"] for entry in figures["prunings"]] == [1, 2, 3]  # type: ignore[index,union-attr,call-overload]
    assert hook.score(2, 1.0) is None and hook.score(3, 1.0) == 1.0  # before, other channels were open
    rows = hook.tables()[0].rows
    assert sum(int(row[2]) for row in rows) == alive and all(int(row[1]) == int(row[2]) + int(row[3]) for row in rows)


def test_an_epoch_that_ends_twice_prunes_once() -> None:
    torch.manual_seed(0)
    model = Plain()
    hook = Sca(model, ScaParams(), _context(model, example()))
    optimizer = _started(hook, model)
    hook.epoch_start(1, 0)
    _step(hook, model, optimizer, example(), torch.tensor([1, 2]))
    hook.epoch_end(1)
    model.eval()(example())  # validation
    assert not hook._sums and not hook._calls
    state = hook.state()
    twin = Plain()
    again = Sca(twin, ScaParams(), _context(twin, example()))
    again.restore(state)
    again.epoch_start(1, 1)  # stopped during validation
    again.epoch_end(1)
    assert again.figures() == hook.figures() and len(again._history) == 1
    assert all(torch.equal(units, hook.keep()[name]) for name, units in again.keep().items())


MOMENTS = ("fit:step@5", "stage:trained@1")
MORE = (*(f"fit:step@{step}" for step in (1, 2, 3, 4, 6, 7, 8, 9)), "fit:epoch@1", "fit:epoch@2", "stage:pruned@1")


@pytest.fixture(scope="module")
def whole(
    processes: Processes, spiking_ready: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Sequence[str]]:
    folder = tmp_path_factory.mktemp("sca")
    words = (
        "sca", "spiking:vgg5", *VGG, "--model-kwargs", "T=2", "--data", "digits", "--epochs", "3", "--lr", "0.01",
        "--batch-size", "512", "--save-every", "0", "--connectivity", "0.5", "--prune-stem", "--finetune-epochs", "1",
        "--latency-rounds", "2", "--min-width", "1", "--no-recalibrate", "--compensate", "none",
        "--calibration-images", "32", "-o",
    )  # fmt: skip
    done = processes.run((*words, "whole.safetensors", "--json"), folder)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert "connectivity" in json.dumps(document)
    return folder, words


def _same_after(moment: str, whole: tuple[Path, Sequence[str]], processes: Processes) -> None:
    folder, words = whole
    name = f"{moment.replace(':', '-')}.safetensors"
    assert processes.run((*words, name), folder, fault=moment).code == -9
    assert not (folder / name).exists()
    resumed = processes.run((*words, name, "--resume"), folder)
    assert resumed.code == 0, resumed.err
    assert (folder / name).read_bytes() == (folder / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_it_resumes_to_the_same_bytes(
    moment: str, whole: tuple[Path, Sequence[str]], processes: Processes
) -> None:
    _same_after(moment, whole, processes)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MORE)
def test_killed_at_other_moments_it_resumes_to_the_same_bytes(
    moment: str, whole: tuple[Path, Sequence[str]], processes: Processes
) -> None:
    _same_after(moment, whole, processes)


@pytest.mark.usefixtures("spiking_ready")
def test_from_training_to_evaluation(prune: Prune) -> None:
    size = ("--model-kwargs", "width=0.0625", "--model-kwargs", "image_size=16", "--model-kwargs", "T=2")
    common = ("--batch-size", "128", "--epochs", "1")
    base = prune("train", "spiking:vgg9", *size, "--data", "digits", *common, "-o", "base.safetensors")
    assert base.code == 0, base.err
    few = ("--latency-rounds", "2", "--calibration-images", "64", "--pruning-nodes", "1-5")
    done = prune("sca", "base.safetensors", *common, *few, "-o", "small.safetensors")
    assert done.code == 0 and "verified" in done.out and "regrown" in done.out, done.err
    shown = prune("inspect", "small.safetensors")
    assert "2. prune" in shown.out and "sca" in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pruning-nodes", "13"), "--pruning-nodes 13: there is no such layer; the network has 4 layers of spiking"),
        (("--keep-share", "1.5"), "keep"),
        (("--connectivity", "0.01"), "lower min_width"),
        ((), "say for how long with --epochs"),
    ],
)
@pytest.mark.usefixtures("spiking_ready")
def test_bad_input_is_one_line_and_leaves_nothing(
    prune: Prune, tmp_path: Path, words: Sequence[str], message: str
) -> None:
    epochs = ("--epochs", "1") if words else ()
    done = prune("sca", "spiking:vgg5", *VGG, "--data", "digits", *epochs, *words, "-o", "out.safetensors")
    errors = [line for line in done.err.splitlines() if "has random weights" not in line]
    assert done.code == 2 and len(errors) == 1 and message in errors[0], done.err
    assert list(tmp_path.iterdir()) == []
