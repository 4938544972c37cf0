"""Every criterion against a slow and obvious computation of the same thing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.criteria.activation import Moments, activation
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.fpgm import fpgm
from prunecli.criteria.gradient import fisher, gate_gradients, taylor
from prunecli.criteria.lamp import lamp, lamp_scores
from prunecli.criteria.magnitude import group_norm, l1
from prunecli.criteria.wanda import wanda
from prunecli.errors import MethodError
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Flattened, Gated, Grouped, Plain, Residual, Transposed, example


def _data(batches: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 3, 16, 16, generator=generator), torch.randint(0, 10, (size,), generator=generator))
        for _ in range(batches)
    ]


def _trained_like(model: nn.Module) -> nn.Module:
    """Statistics and scales that differ by channel, in evaluation mode."""
    torch.manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def _group(model: nn.Module, layer: str) -> ChannelGroup:
    """The group that `layer` writes."""
    return next(group for group in trace(model, example()).groups if layer in group.modules("producer"))


class _Gate:
    """Scales one unit of a group at every reader, the way its definition says."""

    def __init__(self, model: nn.Module, group: ChannelGroup) -> None:
        self.value = torch.ones(group.units, dtype=torch.float64, requires_grad=True)
        for member in group.members:
            if member.role == "consumer":
                module = model.get_submodule(member.module)
                module.register_forward_pre_hook(self._hook(module, member))

    def _hook(self, module: nn.Module, member: Member) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            linear = isinstance(module, nn.Linear)
            channels = args[0].shape[-1 if linear else 1]
            columns = module.weight.shape[member.dim]  # type: ignore[union-attr]
            place = torch.full((columns,), -1)
            for unit, positions in enumerate(member.index):
                place[positions] = unit
            place = place.repeat(channels // columns)
            gate = torch.where(place >= 0, self.value[place], torch.ones((), dtype=torch.float64))
            return (args[0] * (gate if linear else gate[:, None, None]),)

        return hook


def _gates_by_autograd(model: nn.Module, group: ChannelGroup, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """dL/dgate, one backward pass for every sample: shape (samples, units)."""
    rows = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            gated = copy.deepcopy(model).double()
            gate = _Gate(gated, group)
            loss = F.cross_entropy(gated(image[None].double()), label[None])
            rows.append(torch.autograd.grad(loss, gate.value)[0])
    return torch.stack(rows)


CASES = [(Plain, "body.3"), (Residual, "down"), (Residual, "c"), (Grouped, "a"), (Flattened, "a"), (Gated, "a")]


@pytest.mark.parametrize(("network", "name"), CASES)
def test_gate_gradients_are_those_of_a_real_gate(network: type[nn.Module], name: str) -> None:
    model = _trained_like(network())
    group, data = _group(model, name), _data(2)
    exact = _gates_by_autograd(model, group, data)
    found = torch.cat([gates[group.name] for gates in gate_gradients(model, [group], Calibration(batches=data))])
    assert torch.allclose(found, exact, rtol=1e-3, atol=1e-6 + 1e-4 * float(exact.abs().max()))
    assert torch.allclose(
        taylor(model, [group], Calibration(batches=data))[group.name], exact.abs().mean(0), rtol=1e-3, atol=1e-6
    )
    assert torch.allclose(
        fisher(model, [group], Calibration(batches=data))[group.name], exact.square().mean(0), rtol=1e-3, atol=1e-8
    )


def test_taylor_is_the_ablation_where_the_loss_is_linear_in_the_channel() -> None:
    model = _trained_like(Plain())
    group, data = _group(model, "body.6"), _data(2)
    calibration = Calibration(batches=data, loss=lambda output, labels: output[:, 0].sum())
    scores = taylor(model, [group], calibration)["body.6"]
    images = torch.cat([images for images, _ in data])
    for unit in range(group.units):
        ablated = copy.deepcopy(model)
        ablated.head.fc.weight.data[:, unit] = 0
        change = (model(images)[:, 0] - ablated(images)[:, 0]).abs().mean().detach()
        assert float(scores[unit]) == pytest.approx(float(change), rel=1e-3, abs=1e-6)


class _Mixing(nn.Module):
    """Puts another dimension before the batch, so that samples do not lie along the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.mean(1).movedim(1, 0)  # (rows, samples, columns)
        return self.b(F.relu(self.a(steps)).flatten(0, 1)).unflatten(0, steps.shape[:2]).mean(0)


class _Functional(nn.Module):
    """Reads its channels with a plain parameter, which runs no hook."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(16, 12), nn.Parameter(torch.randn(10, 12) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.a(x.mean((1, 2)))), self.out)


def _pair(model: nn.Module, reader: Member) -> ChannelGroup:
    index = torch.arange(12)[:, None]
    return ChannelGroup("a", 12, 12, (Member("a", "weight", 0, index, "producer"), reader))


def test_samples_off_the_first_dimension_and_unseen_readers_are_run_one_by_one() -> None:
    index = torch.arange(12)[:, None]
    for model, reader in (
        (_Mixing(), Member("b", "weight", 1, index, "consumer")),
        (_Functional(), Member("", "out", 1, index, "consumer")),
    ):
        group, (images, labels) = _pair(model, reader), _data(1)[0]
        weight = model.b.weight if isinstance(model, _Mixing) else model.out
        exact = []
        for place in range(len(images)):
            loss = F.cross_entropy(model(images[place : place + 1]), labels[place : place + 1])
            (gradient,) = torch.autograd.grad(loss, weight)
            exact.append((weight * gradient).sum(0).detach().double())
        found = next(gate_gradients(model, [group], Calibration(batches=[(images, labels)])))["a"]
        assert torch.allclose(found, torch.stack(exact), rtol=1e-4, atol=1e-7)


def test_frozen_parameters_and_the_mode_do_not_matter_and_nothing_is_changed() -> None:
    model = _trained_like(Plain())
    group, data = _group(model, "body.3"), _data(1)
    wanted = taylor(model, [group], Calibration(batches=data))["body.3"]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(taylor(model, [group], Calibration(batches=data))["body.3"], wanted)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_labels_the_models_own_predictions_stand_in() -> None:
    scores = torch.randn(4, 10)
    assert torch.equal(default_loss(scores, None), default_loss(scores, scores.argmax(1)))
    maps = torch.randn(2, 8, 4, 4)
    assert float(default_loss(maps, None)) == pytest.approx(float(maps.square().sum() / 2))
    labels = torch.randint(0, 8, (2, 8, 8))
    labels[0, 0] = 255
    grown = F.interpolate(maps, size=(8, 8), mode="bilinear")
    each = F.cross_entropy(grown, labels, ignore_index=255, reduction="none")
    assert float(default_loss(maps, labels)) == pytest.approx(float(each.mean((1, 2)).sum()))


def _taken_in(model: nn.Module, name: str, data: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Everything a reader took in, stored: shape (values, channels)."""
    stored: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: stored.append(args[0].detach()))
    with torch.no_grad():
        for images, _ in data:
            model(images)
    hook.remove()
    return torch.cat(stored).movedim(1, -1).flatten(0, -2).double()


@pytest.mark.parametrize("statistic", ["mean", "std"])
def test_activation_is_that_of_stored_activations(statistic: str) -> None:
    model = _trained_like(Plain())
    group, data = _group(model, "body.3"), [*_data(2, 4), *_data(1, 3)]
    found = activation(model, [group], Calibration(batches=data, options={"statistic": statistic}))["body.3"]
    rows = _taken_in(model, "body.6", data)
    expected = rows.abs().mean(0) if statistic == "mean" else rows.std(0, unbiased=False)
    assert torch.allclose(found, expected, rtol=1e-6)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = torch.randn(50, 3, dtype=torch.float64) + 1e6  # a sum of squares would lose the spread
    joined = Moments.of(rows[:7]) + Moments.of(rows[7:20]) + Moments.of(rows[20:])
    assert torch.allclose(joined.std, rows.std(0, unbiased=False), rtol=1e-9)
    assert torch.allclose(joined.mean, rows.mean(0)) and joined.count == 50


def test_wanda_is_weights_times_norms() -> None:
    model = _trained_like(Plain())
    group, data = _group(model, "body.3"), _data(2)
    norms = _taken_in(model, "body.6", data).square().mean(0).sqrt()
    expected = (model.body[6].weight.double().abs() * norms[None, :, None, None]).sum((0, 2, 3))
    assert torch.allclose(wanda(model, [group], Calibration(batches=data))["body.3"], expected, rtol=1e-6)


def test_wanda_of_grouped_and_transposed_readers() -> None:
    model, data = Grouped().eval(), _data(1)
    group = _group(model, "a")
    norms = _taken_in(model, "g", data).square().mean(0).sqrt()
    expected = torch.zeros(8, dtype=torch.float64)
    for row in range(32):
        for column in range(8):
            channel = row // 8 * 8 + column
            expected[column] += model.g.weight[row, column].double().abs().sum() * norms[channel]
    assert torch.allclose(wanda(model, [group], Calibration(batches=data))["a"], expected, rtol=1e-6)
    model = Transposed().eval()
    norms = _taken_in(model, "up", data).square().mean(0).sqrt()
    expected = model.up.weight.double().abs().sum((1, 2, 3)) * norms
    assert torch.allclose(wanda(model, [_group(model, "a")], Calibration(batches=data))["a"], expected, rtol=1e-6)


def test_fpgm_is_the_double_loop() -> None:
    model = Grouped()
    group = _group(model, "a")
    filters = model.a.weight.detach().double().flatten(1)
    units = [torch.cat([filters[unit + 8 * block] for block in range(4)]) for unit in range(8)]
    expected = [sum(float((a - b).norm()) for b in units) for a in units]
    # The grouped convolution writes the same channels: its filters count too.
    second = model.g.weight.detach().double().flatten(1)
    others = [torch.cat([second[unit + 8 * block] for block in range(4)]) for unit in range(8)]
    if "g" in group.modules("producer"):
        expected = [
            value + sum(float((a - b).norm()) for b in others) for value, a in zip(expected, others, strict=True)
        ]
    assert fpgm(model, [group], Calibration())["a"].tolist() == pytest.approx(expected)


def test_group_norm_is_joint_over_weights_biases_and_scales() -> None:
    model = _trained_like(Plain())
    a, norm, b = model.body[3], model.body[4], model.body[6]
    expected = (
        a.weight.square().sum((1, 2, 3)) + a.bias.square() + norm.weight.square() + norm.bias.square()
        + b.weight.square().sum((0, 2, 3))
    ).sqrt()  # fmt: skip
    found = group_norm(model, [_group(model, "body.3")], Calibration())["body.3"]
    assert torch.allclose(found, expected.double(), rtol=1e-6)


def test_lamp_is_the_papers_formula() -> None:
    norms = torch.rand(20, dtype=torch.float64)
    expected = [float(norms[u] ** 2 / sum(norms[v] ** 2 for v in range(20) if norms[v] >= norms[u])) for u in range(20)]
    assert lamp_scores(norms).tolist() == pytest.approx(expected)
    model = Plain()
    scores = lamp(model, trace(model, example()).groups, Calibration())
    assert all(float(values.max()) == pytest.approx(1) for values in scores.values())  # type: ignore[union-attr]
    assert lamp_scores(torch.zeros(3, dtype=torch.float64)).isfinite().all()


def test_weights_of_any_parameter_count_and_a_group_without_any_says_so() -> None:
    model = _Functional()
    group = _pair(model, Member("", "out", 1, torch.arange(12)[:, None], "consumer"))
    expected = model.a.weight.abs().sum(1) + model.out.abs().sum(0)
    assert torch.allclose(l1(model, [group], Calibration())["a"], expected.double(), rtol=1e-6)
    bias = ChannelGroup("a", 12, 12, (Member("a", "bias", 0, torch.arange(12)[:, None], "producer"),))
    for criterion in (l1, fpgm):
        assert "no weights" in criterion(model, [bias], Calibration())["a"]  # type: ignore[operator]
    for watching in (activation, wanda):
        assert "can be watched" in watching(model, [group], Calibration(batches=_data(1)))["a"]  # type: ignore[operator]


@pytest.mark.parametrize("method", ["taylor", "fisher", "activation", "wanda"])
def test_methods_that_need_data_say_so(method: str) -> None:
    model = Plain()
    with pytest.raises(MethodError, match=r"on data: give calibration batches as data="):
        prunecli.prune(model, method, example_inputs=example())
    with pytest.raises(MethodError, match="data= holds no batches"):
        prunecli.prune(model, method, example_inputs=example(), data=[])


def test_a_repair_without_batches_is_none() -> None:
    used = iter([example()])
    list(used)
    with pytest.raises(MethodError, match="data= holds no batches; a generator that was read before is empty"):
        prunecli.prune(Plain(), "l1", example_inputs=example(), data=used, compensate="ls", recalibrate=False)


def test_a_criterion_without_data_names_the_flag() -> None:
    model = Plain()
    with pytest.raises(MethodError, match="--data"):
        taylor(model, trace(model, example()).groups, Calibration())


@pytest.mark.parametrize("network", [Plain, Residual, Grouped, Flattened, Gated])
def test_whole_batches_are_run_at_once_where_that_is_right(network: type[nn.Module]) -> None:
    model = _trained_like(network())
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    groups = trace(model, example()).groups
    runs.clear()
    list(gate_gradients(model, groups, Calibration(batches=_data(4, 8))))
    assert len(runs) == 2 + 4  # two to see that it is right, and one for each batch


class _Products(nn.Module):
    """Queries and keys of a width of their own, which no weight reads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 16), nn.Linear(8, 16)
        self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        queries = self.q(x) if gate is None else self.q(x) * gate
        return self.out((queries @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x)).mean(1)


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_channels_that_no_weight_reads_are_ranked_by_those_that_write_them(method: str) -> None:
    torch.manual_seed(0)
    model, x, labels = _Products(), torch.randn(6, 5, 8), torch.randint(4, (6,))
    result = prunecli.prune(model, method, example_inputs=x, data=[(x, labels)], keep=["v"], ratio=0.5, prune_stem=True)
    assert result.model.q.out_features == result.model.k.out_features == 8  # type: ignore[union-attr]
    groups = [group for group in trace(model, x, prune_stem=True).groups if group.name == "q"]
    gates = torch.cat([rows["q"] for rows in gate_gradients(model, groups, Calibration(batches=[(x, labels)]))])
    for sample in range(len(x)):
        gate = torch.ones(16, requires_grad=True)
        loss = default_loss(model(x[sample : sample + 1], gate), labels[sample : sample + 1])
        (expected,) = torch.autograd.grad(loss, gate)
        assert torch.allclose(gates[sample].float(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_gradients_of_nothing_are_one_line(method: str) -> None:
    x = torch.randn(2, 5, 8)
    with pytest.raises(MethodError, match="nothing would be removed"):
        prunecli.prune(nn.Linear(8, 4), method, example_inputs=x, data=[x])

    class Closed(_Products):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    with pytest.raises(MethodError, match="the loss has no gradient"):
        prunecli.prune(Closed(), method, example_inputs=x, data=[x], prune_stem=True)


def test_what_the_loss_does_not_see_is_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.b(torch.relu(self.a(x))), self.d(torch.relu(self.c(x)))

    x = torch.randn(4, 8)
    result = prunecli.prune(Two(), "taylor", example_inputs=x, data=[x], ratio=0.5, prune_stem=True)
    assert result.model.a.out_features == 8 and result.model.c.out_features == 16  # type: ignore[union-attr]
    reasons = {entry.name: entry.reason for entry in result.report.untouched}
    assert "the loss does not depend" in reasons["c"]


def test_losses_of_tokens_probabilities_and_values() -> None:
    scores = torch.randn(2, 5, 7)
    tokens = torch.randint(7, (2, 5))
    tokens[0, 0] = -100
    each = F.cross_entropy(scores.flatten(0, 1), tokens.flatten(), reduction="none")
    assert torch.allclose(default_loss(scores, tokens), each.reshape(2, 5).mean(1).sum())
    shares = torch.rand(3, 4).softmax(1)
    logits = torch.randn(3, 4)
    assert torch.allclose(default_loss(logits, shares), F.cross_entropy(logits, shares, reduction="sum"))
    values = torch.randn(3)
    assert torch.allclose(default_loss(logits[:, :1], values), (logits[:, 0] - values).square().sum() / 2)


def test_labels_that_do_not_fit_are_one_line() -> None:
    batch = torch.randn(2, 3, 16, 16), torch.tensor([0, 99])
    with pytest.raises(MethodError, match=r"the loss cannot be computed: IndexError.*check the labels"):
        prunecli.prune(Plain(), "taylor", example_inputs=example(), data=[batch])
