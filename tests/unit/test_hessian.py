"""Curvature by weights and by gates, against whole Hessians of small networks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.criteria import hessian
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.gate_hessian import gate_obd, gate_obd_estimate
from prunecli.criteria.probe import probe_of
from prunecli.criteria.ranks import reliability, spearman
from prunecli.criteria.sampling import Draw, Stop, stable_mean
from prunecli.errors import MethodError
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.tracing.trace import trace
from tests.unit.importance import FEW, NoBias, images
from tests.unit.networks import conv, example
from tests.unit.recurrent import Words, tokens, words_groups


class _Small(nn.Module):
    """A convolution and a normalisation between two layers, few enough weights for a whole Hessian."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.norm, self.b = conv(3, 4), conv(4, 5), nn.BatchNorm2d(5), nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.a(torch.tanh(self.stem(x))))).mean((2, 3)))


class _Attention(nn.Module):
    """One block of a transformer."""

    def __init__(self, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.proj = nn.Linear(3, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2, self.head = nn.Linear(width, 7), nn.Linear(7, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.mean(2).transpose(1, 2))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))


def _attention_groups() -> list[ChannelGroup]:
    six, seven = torch.arange(6).reshape(2, 3).T, torch.arange(7)[:, None]
    rows = torch.cat([six, six + 6, six + 12], dim=1)
    return [
        ChannelGroup(
            "qkv",
            3,
            18,
            (
                Member("qkv", "weight", 0, rows, "producer"),
                Member("qkv", "bias", 0, rows, "producer"),
                Member("proj", "weight", 1, six, "consumer"),
            ),
            kind="head_dim",
        ),
        ChannelGroup(
            "fc1",
            7,
            7,
            (
                Member("fc1", "weight", 0, seven, "producer"),
                Member("fc1", "bias", 0, seven, "producer"),
                Member("fc2", "weight", 1, seven, "consumer"),
            ),
        ),
    ]


def _cases() -> dict[str, tuple[nn.Module, list[ChannelGroup], list[tuple[Tensor, Tensor]]]]:
    torch.manual_seed(7)
    small, attention, words = _Small().double().eval(), _Attention().double().eval(), Words().double().eval()
    with torch.no_grad():
        for parameter in words.parameters():
            parameter *= 3  # as curved as if it were trained
    return {
        "convolution": (small, trace(small, example().double()).groups, images(2)),
        "attention": (attention, _attention_groups(), images(2)),
        "lstm": (words, words_groups(words), tokens(2)),
    }


CASES = _cases()


def _mean_loss(original: nn.Module, data: list[tuple[Tensor, Tensor]]) -> Any:
    """The mean loss of a sample as a function of some of the parameters."""
    count = sum(len(inputs) for inputs, _ in data)
    model = copy.deepcopy(original)  # recurrent layers remember what torch.func called them with

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for inputs, labels in data:
            given = inputs.double() if inputs.is_floating_point() else inputs
            with hessian.differentiable_twice(model):
                output = torch.func.functional_call(model, parameters, (given,))
            total = total + default_loss(output, labels)
        return total / count

    return loss


def _diagonals(model: nn.Module, groups: list[ChannelGroup], data: Any) -> dict[str, Tensor]:
    """The diagonal of the Hessian by every incoming weight, each tensor's Hessian written out."""
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(member.name for group in groups for member in hessian.incoming(model, group)):
        value = model.get_parameter(name).detach()
        with hessian.differentiable_twice(model):
            whole = torch.func.hessian(_mean_loss(model, data))({name: value})[name][name]
        found[name] = whole.reshape(value.numel(), -1).diagonal().detach().reshape(value.shape)
    return found


def _loop(groups: list[ChannelGroup], model: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums of a value of every incoming weight by unit, in a loop."""
    sums: dict[str, Tensor] = {}
    for group in groups:
        sums[group.name] = torch.zeros(group.units, dtype=torch.float64)
        for member, unit in itertools.product(hessian.incoming(model, group), range(group.units)):
            for position in member.index[unit]:
                sums[group.name][unit] += values[member.name].select(member.dim, int(position)).sum()
    return sums


@pytest.mark.parametrize("case", list(CASES))
def test_products_with_the_hessian_are_those_of_torch_func(case: str) -> None:
    model, groups, data = CASES[case]
    probe = probe_of(model)
    leaves = {
        member.name: probe.get_parameter(member.name) for group in groups for member in hessian.incoming(probe, group)
    }
    drawn = next(hessian.curvature_draws(probe, leaves, Calibration(batches=data), "hap"))
    generator = torch.Generator()
    generator.manual_seed(Calibration().generator.initial_seed())
    signs = {name: hessian.random_signs(leaf, generator) for name, leaf in leaves.items()}
    values = {name: leaf.detach() for name, leaf in leaves.items()}
    with hessian.differentiable_twice(model):
        gradient = torch.func.grad(_mean_loss(model, data[:1]))
        _, products = torch.func.jvp(gradient, (values,), (signs,))
    for name, product in products.items():
        assert torch.allclose(drawn.values[name], signs[name] * product, rtol=1e-8, atol=1e-12), name


@pytest.mark.parametrize("case", list(CASES))
def test_hap_is_the_trace_times_the_mean_square(case: str) -> None:
    model, groups, data = CASES[case]
    traces = _loop(groups, model, _diagonals(model, groups, data))
    options = {"min_probes": 200, "max_probes": 200, "stability": 1.0}
    estimate = hessian.hap_estimate(model, groups, Calibration(batches=data, options=options))
    assert estimate.probes == 200 and set(estimate.means) == {group.name for group in groups}
    squares = _loop(groups, model, {name: value.detach().square() for name, value in model.named_parameters()})
    numbers = _loop(groups, model, {name: torch.ones_like(value) for name, value in model.named_parameters()})
    sure: dict[str, float] = {}
    for name, exact in traces.items():
        away = (estimate.means[name] - exact) / estimate.standard_errors[name]
        assert float(away.abs().max()) < 4.5 and float(away.square().mean()) < 3, (name, away)
        sure[name] = float((exact / estimate.standard_errors[name]).abs().max())
        scores = estimate.means[name].clamp_min(0) * squares[name] / numbers[name]
        assert torch.allclose(estimate.scores[name], scores, rtol=1e-10)
    assert max(sure.values()) > 5  # a wrong factor would show


def test_sampling_stops_when_the_ranking_is_stable_and_says_how_stable_it_is() -> None:
    exact, asked = torch.arange(20.0, dtype=torch.float64), []

    def draws() -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(0)
        for number in itertools.count():
            asked.append(number)
            noise = 24 * torch.randn(20, generator=generator, dtype=torch.float64)
            yield Draw({"a": exact + noise}, 3, number % 2)

    found = [
        stable_mean(draws(), Stop(fewest=4, most=2000, stability=wanted), lambda _, mean: mean)
        for wanted in (0.7, 0.9, 0.97)
    ]
    probes = [estimate.probes for estimate in found]
    assert 4 <= probes[0] < probes[1] < probes[2] < 2000 and len(asked) == sum(probes)
    for estimate, wanted in zip(found, (0.7, 0.9, 0.97), strict=True):
        assert wanted <= estimate.reliability <= 1
        assert estimate.standard_errors["a"].mean() == pytest.approx(24 / estimate.probes**0.5, rel=0.3)
        away = (estimate.means["a"] - exact) / estimate.standard_errors["a"]
        assert 0.3 < float(away.square().mean()) < 2.5
    assert stable_mean(draws(), Stop(stability=1.0, most=40), lambda _, mean: mean).probes == 40


def test_few_probes_and_many_of_them_contradict_each_other() -> None:
    model, groups, data = CASES["convolution"]
    with pytest.raises(MethodError, match="--min-probes 9 is more than --max-probes 8"):
        hessian.hap(model, groups, Calibration(batches=data, options={"min_probes": 9, "max_probes": 8}))


def test_a_single_batch_is_cut_in_two_and_a_single_sample_is_refused() -> None:
    model, groups, data = CASES["convolution"]
    options = {"max_probes": 16}
    inputs, labels = data[0]
    whole = hessian.hap(model, groups, Calibration(batches=data[:1], options=options))
    halves = [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])]
    cut = hessian.hap(model, groups, Calibration(batches=halves, options=options))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="two samples at least"):
        hessian.hap(model, groups, Calibration(batches=[(inputs[:1], labels[:1])]))


def test_a_tied_weight_counts_where_it_writes() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 9, bias=False)).double()
    apart = copy.deepcopy(model)
    model[3].weight = model[0].weight
    apart[3].weight = nn.Parameter(model[0].weight.detach().clone())
    index = torch.arange(4)[:, None]
    tied = [Member("0", "weight", 1, index, "producer"), Member("3", "weight", 1, index, "producer")]  # as it is traced
    group = ChannelGroup("0", 4, 4, (*tied, Member("1", "weight", 1, index, "consumer")))
    data = tokens(2, words=9)
    scores = [hessian.hap(net, [group], Calibration(batches=data))["0"] for net in (model, apart)]
    assert torch.equal(*scores)  # type: ignore[arg-type]


def test_rank_correlation() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert spearman(a, a.exp()) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, b) == pytest.approx(0.8)
    assert spearman(a, torch.zeros(4)) == 0 and spearman(torch.zeros(4), torch.zeros(4)) == 1
    assert reliability({"a": a, "b": a[:2]}, {"a": b, "b": -a[:2]}) == pytest.approx(1.6 / 1.8)


@pytest.mark.parametrize("case", list(CASES))
def test_obd_is_half_the_diagonal_times_the_square(case: str) -> None:
    model, groups, data = CASES[case]
    diagonals = _diagonals(model, groups, data)
    exact = _loop(
        groups, model, {name: value * model.get_parameter(name).detach() ** 2 / 2 for name, value in diagonals.items()}
    )
    options = {"min_probes": 200, "max_probes": 200, "stability": 1.0}
    estimate = hessian.obd_estimate(model, groups, Calibration(batches=data, options=options))
    sure: dict[str, float] = {}
    for name, wanted in exact.items():
        away = (estimate.means[name] - wanted) / estimate.standard_errors[name]
        assert float(away.abs().max()) < 4.5 and float(away.square().mean()) < 3, (name, away)
        sure[name] = float((wanted / estimate.standard_errors[name]).abs().max())
        assert torch.equal(estimate.scores[name], estimate.means[name].clamp_min(0))
    assert max(sure.values()) > 5


def _gated_loss(case: str, groups: list[ChannelGroup], data: list[tuple[Tensor, Tensor]]) -> Any:
    """The mean loss of a sample as a function of the gates, which multiply what readers take in."""
    model = copy.deepcopy(CASES[case][0])
    count = sum(len(inputs) for inputs, _ in data)

    def loss(gates: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for inputs, labels in data:
            if case == "lstm":
                output = _gated_words(model, inputs, gates)
            else:
                hooks = []
                for group in groups:
                    for member in group.members:
                        if member.role == "consumer":
                            hooks.append(_multiplied(model.get_submodule(member.module), member, gates[group.name]))
                with hessian.differentiable_twice(model):
                    output = model(inputs.double())
                for hook in hooks:
                    hook.remove()
            total = total + default_loss(output, labels)
        return total / count

    return loss


def _multiplied(module: nn.Module, member: Member, gate: Tensor) -> Any:
    linear = isinstance(module, nn.Linear)

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        unit = torch.empty(args[0].shape[-1 if linear else 1], dtype=torch.int64)
        for number, positions in enumerate(member.index):
            unit[positions] = number
        return (args[0] * (gate[unit] if linear else gate[unit][:, None, None]),)

    return module.register_forward_pre_hook(hook)


def _gated_words(model: Any, inputs: Tensor, gates: dict[str, Tensor]) -> Tensor:
    """The language model step by step, written out."""
    x = model.embed(inputs).transpose(0, 1) * gates["embed"]
    for name in ("first", "second"):
        layer, outputs = getattr(model, name), []
        h = c = torch.zeros(inputs.shape[0], layer.hidden_size, dtype=torch.float64)
        for step in x:
            sums = step @ layer.weight_ih_l0.T + layer.bias_ih_l0 + (h * gates[name]) @ layer.weight_hh_l0.T
            i, f, g, o = (sums + layer.bias_hh_l0).split(layer.hidden_size, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        x = torch.stack(outputs) * gates[name]
    return model.decode(x).transpose(0, 1)


@pytest.mark.parametrize("case", list(CASES))
def test_gate_obd_is_the_curvature_by_a_real_gate(case: str) -> None:
    _, groups, data = CASES[case]
    gates = {group.name: torch.ones(group.units, dtype=torch.float64) for group in groups}
    whole = torch.func.hessian(_gated_loss(case, groups, data))(gates)
    options = {"min_probes": 200, "max_probes": 200, "stability": 1.0}
    estimate = gate_obd_estimate(CASES[case][0], groups, Calibration(batches=data, options=options))
    sure: dict[str, float] = {}
    for name in gates:
        exact = whole[name][name].diagonal().detach() / 2
        away = (estimate.means[name] - exact) / estimate.standard_errors[name]
        assert float(away.abs().max()) < 4.5 and float(away.square().mean()) < 3, (name, away)
        sure[name] = float((exact / estimate.standard_errors[name]).abs().max())
        assert torch.equal(estimate.scores[name], estimate.means[name].clamp_min(0))
    assert max(sure.values()) > 5
    assert all(parameter.grad is None for parameter in CASES[case][0].parameters())


def test_gates_of_what_no_weight_reads_lie_where_it_is_written_once() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(1, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((2, 3))
            return self.head((self.q(x) * self.k(x)).sum(1, keepdim=True).square())

    torch.manual_seed(0)
    model, data, index = Products().double(), images(2), torch.arange(4)[:, None]
    members = [Member(name, kind, 0, index, "producer") for name in "qk" for kind in ("weight", "bias")]
    group = ChannelGroup("q", 4, 4, tuple(members))

    def loss(gate: Tensor) -> Tensor:
        x = torch.cat([inputs for inputs, _ in data]).double().mean((2, 3))
        scores = model.head(((model.q(x) * gate) * model.k(x)).sum(1, keepdim=True).square())
        return F.cross_entropy(scores, torch.cat([labels for _, labels in data]))

    exact = torch.func.hessian(loss)(torch.ones(4, dtype=torch.float64)).diagonal().detach() / 2
    options = {"min_probes": 200, "max_probes": 200, "stability": 1.0}
    estimate = gate_obd_estimate(model, [group], Calibration(batches=data, options=options))
    away = (estimate.means["q"] - exact) / estimate.standard_errors["q"]
    assert float(away.abs().max()) < 4
    assert float((exact / estimate.standard_errors["q"]).abs().max()) > 5


class _Once(torch.autograd.Function):
    """The square, with a derivative that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


class _OnlyOnce(NoBias):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(_Once.apply(self.a(x.mean((2, 3)))))


class _Squared(_OnlyOnce):
    """The same behind the layer that reads."""

    def forward(self, x: Tensor) -> Tensor:
        return _Once.apply(self.c(self.a(x.mean((2, 3)))))


@pytest.mark.parametrize(
    ("criterion", "network", "name"),
    [(hessian.hap, _OnlyOnce, "hap"), (hessian.obd, _OnlyOnce, "obd"), (gate_obd, _Squared, "gate-obd")],
)
def test_a_network_that_cannot_be_differentiated_twice_says_so(criterion: Any, network: Any, name: str) -> None:
    index = torch.arange(7)[:, None]
    members = (Member("a", "weight", 0, index, "producer"), Member("c", "weight", 1, index, "consumer"))
    group = ChannelGroup("a", 7, 7, members)
    with pytest.raises(MethodError, match=f"^{name} differentiates the loss twice, .*; choose fisher instead$"):
        criterion(network(), [group], Calibration(batches=images(2)))


def test_units_on_which_nothing_depends_have_no_relative_error() -> None:
    model = NoBias().eval()
    index = torch.arange(7)[:, None]
    group = ChannelGroup("a", 7, 7, (Member("a", "weight", 0, index, "producer"),))
    options = {**FEW, "stability": 1.0}
    found = Calibration(batches=images(2), options=options)
    hessian.hap(model, [group], found)
    assert found.found["probes"] == 6 and found.found["relative_standard_error"] > 0
    with torch.no_grad():
        model.a.bias.fill_(-100)  # every unit is dead
    dead = Calibration(batches=images(2), options=options)
    scores = hessian.hap(model, [group], dead)["a"]
    assert float(scores.max()) == 0 and "relative_standard_error" not in dead.found  # type: ignore[union-attr]


def test_a_standard_error_is_the_deviation_over_the_root_of_the_number() -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = [Draw({"a": value}, 2, place % 2) for place, value in enumerate(values)]
    found = stable_mean(draws, Stop(fewest=5, most=5), lambda _, mean: mean)
    assert torch.allclose(found.standard_errors["a"], values.std(0) / 5**0.5)
    assert torch.allclose(found.halves[1]["a"], values[1::2].mean(0))
    uneven = [Draw({"a": values[0]}, 1, 0), Draw({"a": values[1]}, 3, 1), Draw({"a": values[2]}, 4, 0)]
    found = stable_mean(uneven, Stop(fewest=3, most=3), lambda _, mean: mean)
    assert torch.allclose(found.means["a"], (values[0] + 3 * values[1] + 4 * values[2]) / 8)


def test_every_other_batch_is_one_half() -> None:
    model, groups, data = CASES["convolution"]
    probe = probe_of(model)
    leaves = {"a.weight": probe.get_parameter("a.weight")}
    draws = hessian.curvature_draws(probe, leaves, Calibration(batches=data), "hap")
    assert [next(draws).half for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    assert groups
