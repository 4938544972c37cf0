"""Second-order criteria, and what readers take in, against slow and obvious computations of the same thing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.criteria import hessian, obs
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.enhanced import enhanced
from prunecli.criteria.gate_hessian import gate_obd, gate_obd_estimate
from prunecli.criteria.gradient import fisher, gate_gradients
from prunecli.criteria.probe import probe_of
from prunecli.criteria.ranks import reliability, spearman
from prunecli.criteria.sampling import Draw, Stop, stable_mean
from prunecli.errors import MethodError
from prunecli.models.loading import load_reference
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.recurrent.unrolling import unrolled
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Flattened, Grouped, Transposed, conv, example
from tests.unit.recurrent import Words, tokens, words_groups


def _images(batches: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 3, 16, 16, generator=generator), torch.randint(0, 10, (size,), generator=generator))
        for _ in range(batches)
    ]


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
        "convolution": (small, trace(small, example().double()).groups, _images(2)),
        "attention": (attention, _attention_groups(), _images(2)),
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
    options = {"min_probes": 300, "max_probes": 300, "stability": 1.0}
    estimate = hessian.hap_estimate(model, groups, Calibration(batches=data, options=options))
    assert estimate.probes == 300 and set(estimate.means) == {group.name for group in groups}
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


def _read(model: nn.Module, module: str, data: Any) -> Tensor:
    """Everything a layer took in, channels last, shape (rows, channels)."""
    kept: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        for inputs, _ in data:
            model(inputs)
    hook.remove()
    values = torch.cat(kept).double()
    return values.movedim(1, -1).flatten(0, -2) if values.dim() == 4 else values.flatten(0, -2)


def _least_squares(rows: Tensor, weight: Tensor, gone: list[int], centred: bool, ridge: float = 0.01) -> float:
    """Error of W x without some columns, the others fitted anew, as a share of E|W x|^2: one solve, no inverse."""
    rows = rows - rows.mean(0) if centred else rows
    count = len(rows)
    strength = ridge * float((rows.square().sum(0) / count).mean())
    kept = [column for column in range(rows.shape[1]) if column not in gone]
    # The ridge is written as further rows, which hold the columns where they are.
    held = (strength * count) ** 0.5 * torch.eye(rows.shape[1], dtype=torch.float64)
    stacked = torch.cat([rows, held])
    target = stacked @ weight.T
    fitted = torch.linalg.lstsq(stacked[:, kept], target).solution
    error = (target - stacked[:, kept] @ fitted).square().sum() / count
    return float(error / ((rows @ weight.T).square().sum() / count))


def test_obs_is_the_least_squares_error_without_the_unit() -> None:
    torch.manual_seed(2)
    model, data = Flattened().eval(), _images(2, 40)
    groups = [group for group in trace(model, example()).groups if group.name in ("a", "fc1")]
    scores = obs.obs(model, groups, Calibration(batches=data))
    for group, reader in zip(groups, ("fc1", "fc2"), strict=True):  # units of 16 columns, and of one
        rows, weight = _read(model, reader, data), model.get_submodule(reader).weight.detach().double()
        consumer = next(member for member in group.members if member.role == "consumer")
        expected = [_least_squares(rows, weight, consumer.index[unit].tolist(), True) for unit in range(group.units)]
        assert scores[group.name].tolist() == pytest.approx(expected, rel=1e-6)  # type: ignore[union-attr]


def test_obs_of_recurrent_units_counts_every_reader() -> None:
    model, groups, data = CASES["lstm"]
    scores = obs.obs(model, groups[1:], Calibration(batches=data))
    stepwise: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for inputs, _ in data:
            first = model.first(model.embed(inputs).transpose(0, 1))[0]  # type: ignore[operator]
            second = model.second(first)[0]  # type: ignore[operator]
            for name, outputs in (("first", first), ("second", second)):
                before = torch.cat([torch.zeros_like(outputs[:1]), outputs[:-1]])
                stepwise.setdefault(f"{name}.own", []).append(before.flatten(0, 1))
                stepwise.setdefault(f"{name}.next", []).append(outputs.flatten(0, 1))
    weights = {
        "first": (model.first.weight_hh_l0, model.second.weight_ih_l0),
        "second": (model.second.weight_hh_l0, model.decode.weight),
    }
    for name, own in weights.items():
        rows = [torch.cat(stepwise[f"{name}.{reader}"]) for reader in ("own", "next")]
        expected = [
            sum(_least_squares(x, w.detach(), [unit], True) for x, w in zip(rows, own, strict=True))  # type: ignore[operator]
            for unit in range(len(scores[name]))
        ]
        assert scores[name].tolist() == pytest.approx(expected, rel=1e-6)  # type: ignore[union-attr]


class _NoBias(nn.Module):
    """Two readers of one layer, one with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 7), nn.Linear(7, 4), nn.Linear(7, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x.mean((2, 3))))
        return self.c(x) + F.pad(self.b(x), (0, 6))


def test_greedy_obs_removes_the_cheapest_and_counts_again() -> None:
    torch.manual_seed(4)
    model, data = _NoBias().eval(), _images(2, 60)
    index = torch.arange(7)[:, None]
    group = ChannelGroup("a", 7, 7, tuple(Member(name, "weight", 1, index, "consumer") for name in "bc"))
    found = obs.obs_greedy(model, [group], Calibration(batches=data))["a"]
    rows = _read(model, "b", data)
    gone: list[int] = []
    spent, last = 0.0, 0.0
    for unit in found.argsort().tolist():  # type: ignore[union-attr]
        totals = {
            other: sum(
                _least_squares(rows, layer.weight.detach().double(), [*gone, other], layer.bias is not None)
                for layer in (model.b, model.c)
            )
            for other in range(7)
            if other not in gone
        }
        assert unit == min(totals, key=lambda other: totals[other])
        last = max(totals[unit] - spent, last)
        assert float(found[unit]) == pytest.approx(last, rel=1e-6)  # type: ignore[arg-type]
        gone.append(unit)
        spent = totals[unit]


def test_greedy_obs_of_units_at_several_columns_and_their_order_is_strict() -> None:
    model, data = Flattened().eval(), _images(2, 40)
    group = next(group for group in trace(model, example()).groups if group.name == "a")
    scores = obs.obs_greedy(model, [group], Calibration(batches=data))["a"]
    assert len(set(scores.tolist())) == group.units  # type: ignore[union-attr]
    rows, weight = _read(model, "fc1", data), model.fc1.weight.detach().double()
    order = scores.argsort().tolist()  # type: ignore[union-attr]
    consumer = next(member for member in group.members if member.role == "consumer")
    half = [column for unit in order[:8] for column in consumer.index[unit].tolist()]
    total = sum(sorted(scores.tolist())[:8])  # type: ignore[union-attr]
    assert total >= _least_squares(rows, weight, half, True) * (1 - 1e-6)


@pytest.mark.parametrize(("network", "name", "reader"), [(Grouped, "a", "g"), (Transposed, "a", "up")])
def test_obs_of_grouped_and_transposed_readers(network: type[nn.Module], name: str, reader: str) -> None:
    torch.manual_seed(3)
    model, data = network().eval(), _images(1, 8)
    group = next(group for group in trace(model, example()).groups if group.name == name)
    score = obs.obs(model, [group], Calibration(batches=data))[name]
    rows, layer = _read(model, reader, data), model.get_submodule(reader)
    member = next(member for member in group.members if member.module == reader and member.role == "consumer")
    blocks = layer.groups if member.dim == 1 else 1
    weight = layer.weight.detach().double()
    by_block = rows - rows.mean(0)
    strength = 0.01 * float(by_block.square().mean(0).mean())
    cost, total = torch.zeros(group.units, dtype=torch.float64), 0.0
    for block in range(blocks):
        own = weight.chunk(blocks)[block].movedim(member.dim, -1).flatten(0, -2)
        x = by_block.chunk(blocks, dim=1)[block]
        second = x.T @ x / len(x)
        inverse = torch.linalg.inv(second + strength * torch.eye(len(second), dtype=torch.float64))
        total += float((own @ second @ own.T).trace())
        for unit, columns in enumerate(member.index.tolist()):
            rows_of = inverse[columns][:, columns]
            cost[unit] += (own[:, columns] @ torch.linalg.inv(rows_of) @ own[:, columns].T).trace()
    assert score.tolist() == pytest.approx((cost / total).tolist(), rel=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("together", [1, 20, 4096])
def test_removals_that_are_subtracted_together_are_those_one_by_one(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    model, data = Flattened().eval(), _images(2, 40)
    groups = [group for group in trace(model, example()).groups if group.name in ("a", "fc1")]
    wanted = obs.obs_greedy(model, groups, Calibration(batches=data))
    monkeypatch.setattr(obs, "_TOGETHER", together)
    found = obs.obs_greedy(model, groups, Calibration(batches=data))
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-8) for name in wanted)  # type: ignore[arg-type]


def test_wide_readers_pool_places_and_wider_ones_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model, data = Flattened().eval(), _images(1, 40)
    group = next(group for group in trace(model, example()).groups if group.name == "a")
    monkeypatch.setattr(obs, "WIDEST", 100)
    score = obs.obs(model, [group], Calibration(batches=data))["a"]
    rows, weight = _read(model, "fc1", data).unflatten(1, (16, 16)), model.fc1.weight.detach().double()
    flat = rows.movedim(1, -1).flatten(0, 1)
    flat = flat - flat.mean(0)
    second = flat.T @ flat / len(flat)
    inverse = torch.linalg.inv(second + 0.01 * second.diagonal().mean() * torch.eye(16, dtype=torch.float64))
    by_place = weight.unflatten(1, (16, 16))
    total = sum(float((by_place[..., p] @ second @ by_place[..., p].T).trace()) for p in range(16))
    expected = by_place.square().sum((0, 2)) / inverse.diagonal() / total
    assert score.tolist() == pytest.approx(expected.tolist(), rel=1e-6)  # type: ignore[union-attr]
    monkeypatch.setattr(obs, "WIDEST", 10)
    assert "more than" in obs.obs(model, [group], Calibration(batches=data))["a"]  # type: ignore[operator]


def test_a_covariance_of_parts_is_that_of_the_whole() -> None:
    rows = torch.randn(90, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 1e6
    parts = obs.Covariance()
    for part in rows.split(37):
        parts.add(part)
    assert torch.allclose(parts.second(centred=True), torch.cov(rows.T, correction=0), rtol=1e-6)
    assert torch.allclose(parts.second(centred=False), rows.T @ rows / 90, rtol=1e-12)


def test_groups_without_a_writer_or_a_reader_say_so() -> None:
    model, data = _NoBias().eval(), _images(2)
    index = torch.arange(7)[:, None]
    read, written = Member("b", "weight", 1, index, "consumer"), Member("a", "weight", 0, index, "producer")
    alone = ChannelGroup("r", 7, 7, (read,))
    assert "no layer writes it" in hessian.hap(model, [alone], Calibration(batches=data))["r"]  # type: ignore[operator]
    unread = ChannelGroup("w", 7, 7, (written,))
    assert "can be watched" in obs.obs(model, [unread], Calibration(batches=data))["w"]  # type: ignore[operator]
    with torch.no_grad():
        model.b.weight.zero_()
    assert "give zero" in obs.obs(model, [alone], Calibration(batches=data))["r"]  # type: ignore[operator]


KINDS = [
    (kind, {"num_layers": layers, "bidirectional": both, "batch_first": first} | extra)
    for kind, extra in (
        (nn.LSTM, {}),
        (nn.LSTM, {"proj_size": 3}),
        (nn.GRU, {}),
        (nn.RNN, {"bias": False}),
        (nn.RNN, {"nonlinearity": "relu"}),
    )
    for layers, both, first in ((1, False, False), (2, True, True))
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("alone", [False, True])
def test_an_unrolled_layer_is_the_fused_one(kind: type[nn.RNNBase], settings: dict[str, Any], alone: bool) -> None:
    torch.manual_seed(0)
    layer = kind(5, 7, **settings).double().eval()
    names: list[str] = []
    forward = unrolled(layer, lambda name, values: (names.append(name), values)[1])  # type: ignore[func-returns-value]
    x = torch.randn(4, 5).double() if alone else torch.randn(4, 3, 5).double()
    wanted, carried = layer(x)
    given = (x, carried), (x, None)
    for inputs, state in given:
        (wanted, last), (found, own) = layer(inputs, state), forward(inputs, state)
        pairs = [(wanted, found), *(zip(last, own, strict=True) if kind is nn.LSTM else [(last, own)])]
        assert all(a.shape == b.shape and torch.allclose(a, b, atol=1e-12) for a, b in pairs)
    assert {name.split("_l")[0] for name in names} >= {"weight_ih", "weight_hh"}


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_an_unrolled_cell_is_the_cell(cell: Any) -> None:
    torch.manual_seed(0)
    layer, x = cell(5, 7).double(), torch.randn(3, 5).double()
    forward = unrolled(layer, lambda _, values: values)
    state = layer(x)
    for given in (None, state):
        wanted, found = layer(x, given), forward(x, given)
        pairs = zip(wanted, found, strict=True) if cell is nn.LSTMCell else [(wanted, found)]
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("case", list(CASES))
def test_obd_is_half_the_diagonal_times_the_square(case: str) -> None:
    model, groups, data = CASES[case]
    diagonals = _diagonals(model, groups, data)
    exact = _loop(
        groups, model, {name: value * model.get_parameter(name).detach() ** 2 / 2 for name, value in diagonals.items()}
    )
    options = {"min_probes": 300, "max_probes": 300, "stability": 1.0}
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
    options = {"min_probes": 300, "max_probes": 300, "stability": 1.0}
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
    model, data, index = Products().double(), _images(2), torch.arange(4)[:, None]
    members = [Member(name, kind, 0, index, "producer") for name in "qk" for kind in ("weight", "bias")]
    group = ChannelGroup("q", 4, 4, tuple(members))

    def loss(gate: Tensor) -> Tensor:
        x = torch.cat([inputs for inputs, _ in data]).double().mean((2, 3))
        scores = model.head(((model.q(x) * gate) * model.k(x)).sum(1, keepdim=True).square())
        return F.cross_entropy(scores, torch.cat([labels for _, labels in data]))

    exact = torch.func.hessian(loss)(torch.ones(4, dtype=torch.float64)).diagonal().detach() / 2
    options = {"min_probes": 300, "max_probes": 300, "stability": 1.0}
    estimate = gate_obd_estimate(model, [group], Calibration(batches=data, options=options))
    away = (estimate.means["q"] - exact) / estimate.standard_errors["q"]
    assert float(away.abs().max()) < 4
    assert float((exact / estimate.standard_errors["q"]).abs().max()) > 5


def _gates_one_by_one(model: nn.Module, groups: list[ChannelGroup], data: Any) -> dict[str, Tensor]:
    """w * dL/dw over the weights that read each unit, one sample after the other, in a loop over units."""
    rows: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    for inputs, labels in data:
        for place in range(len(inputs)):
            model.zero_grad()
            default_loss(model(inputs[place : place + 1]), labels[place : place + 1]).backward()
            for group in groups:
                gate = torch.zeros(group.units, dtype=torch.float64)
                for member, unit in itertools.product(group.members, range(group.units)):
                    if member.role == "consumer":
                        weight = model.get_parameter(member.name)
                        for column in member.index[unit]:
                            own = weight.select(member.dim, int(column)) * weight.grad.select(member.dim, int(column))  # type: ignore[union-attr]
                            gate[unit] += float(own.sum())
                rows[group.name].append(gate)
    model.zero_grad()
    return {name: torch.stack(values) for name, values in rows.items()}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units_take_one_backward_pass_for_a_batch(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(3)
    model = Words(kind).double().eval()
    groups, data = words_groups(model), tokens(3, samples=5)
    exact = _gates_one_by_one(model, groups, data)
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    found: dict[str, list[Tensor]] = {}
    for gates in gate_gradients(model, groups, Calibration(batches=data)):
        for name, rows in gates.items():
            found.setdefault(name, []).append(rows)
    assert len(runs) == 2 + 3
    for name, wanted in exact.items():
        assert torch.allclose(torch.cat(found[name]), wanted, rtol=1e-7, atol=1e-12), name
        mean = fisher(model, groups, Calibration(batches=data))[name]
        assert torch.allclose(mean, wanted.square().mean(0), rtol=1e-7)  # type: ignore[arg-type]


class _Wrapped(nn.Module):
    """A recurrent network that takes its samples first and its weights in ways that differ from layer to layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embed = kind, nn.Embedding(11, 5)
        settings: dict[str, Any] = {"batch_first": True, "proj_size": 3} if kind == "projected" else {}
        self.rnn = nn.LSTM(5, 6, **settings) if kind != "cell" else nn.GRUCell(5, 6)
        self.decode = nn.Linear(3 if kind == "projected" else 6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.kind == "cell":
            h, outputs = torch.zeros(len(x), 6, dtype=x.dtype), []
            for step in x.unbind(1):
                h = self.rnn(step, h)
                outputs.append(h)
            return self.decode(torch.stack(outputs, 1))
        if self.kind == "projected":
            return self.decode(self.rnn(x)[0])
        carried = (torch.full((1, len(x), 6), 0.3, dtype=x.dtype), torch.zeros(1, len(x), 6, dtype=x.dtype))
        steps = self.rnn(x.transpose(0, 1), carried)[0]
        if self.kind == "packed":
            packed = nn.utils.rnn.pack_padded_sequence(x, [x.shape[1]] * len(x), batch_first=True)
            steps = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0]
        return self.decode(steps.flatten(0, 1)).unflatten(0, steps.shape[:2]).transpose(0, 1)


@pytest.mark.parametrize(("kind", "runs"), [("cell", 3), ("projected", 3), ("carried", 3), ("packed", 3)])
def test_cells_projections_carried_states_and_packed_sequences(kind: str, runs: int) -> None:
    torch.manual_seed(3)
    model, six, three = _Wrapped(kind).double().eval(), torch.arange(6)[:, None], torch.arange(3)[:, None]
    if kind == "projected":
        members = [("rnn", "weight_hr_l0", six)]
        projected = tuple(
            Member(name, weight, 1, three, "consumer")
            for name, weight in (("rnn", "weight_hh_l0"), ("decode", "weight"))
        )
        groups = [ChannelGroup("proj", 3, 3, projected)]
    else:
        members = [("rnn", "weight_hh" if kind == "cell" else "weight_hh_l0", six), ("decode", "weight", six)]
        groups = []
    own = tuple(Member(name, weight, 1, index, "consumer") for name, weight, index in members)
    groups.append(ChannelGroup("rnn", 6, 6, own))
    data = tokens(1, samples=5)
    exact, count = _gates_one_by_one(model, groups, data), []
    model.register_forward_hook(lambda *_: count.append(1))
    gates = next(gate_gradients(model, groups, Calibration(batches=data)))
    assert len(count) == runs
    for name, wanted in exact.items():
        assert torch.allclose(gates[name], wanted, rtol=1e-7, atol=1e-12), name


def test_batches_of_one_sample_or_one_step_do_not_settle_where_samples_lie() -> None:
    torch.manual_seed(3)
    model = Words().double().eval()
    groups, (inputs, labels) = words_groups(model), tokens(1, samples=6, steps=6)[0]
    data = [
        (inputs[:1], labels[:1]),
        (inputs[:, :1], labels[:, :1]),
        (inputs, labels),
        (inputs[:2], labels[:2]),
    ]
    found = list(gate_gradients(model, groups, Calibration(batches=data)))
    for batch, gates in zip(data, found, strict=True):
        for name, wanted in _gates_one_by_one(model, groups, [batch]).items():
            assert torch.allclose(gates[name], wanted, rtol=1e-7, atol=1e-12), name


def test_gates_of_a_tied_network_are_those_of_the_same_network_untied() -> None:
    def build(tied: bool) -> tuple[nn.Module, list[ChannelGroup]]:
        torch.manual_seed(6)
        model = load_reference("lm:gru", num_classes=11, units=8, layers=2, tied=True).model.double().eval()
        for parameter in model.parameters():
            parameter.data *= 4
        tokens = torch.zeros(2, 5, dtype=torch.int64)
        model = in_form(model, tokens)
        groups = trace(model, tokens).groups
        if not tied:
            model.decoder.weight = nn.Parameter(model.decoder.weight.detach().clone())
        return model, groups

    data = tokens(2)
    (tied, groups), (apart, _) = build(True), build(False)
    assert any(member.name == "decoder.weight" for group in groups for member in group.members)
    corrected = [
        ChannelGroup(
            group.name,
            group.units,
            group.channels,
            tuple(
                Member(m.module, m.tensor, m.dim, m.index, "consumer") if m.name == "decoder.weight" else m
                for m in group.members
            ),
        )
        for group in groups
    ]
    wanted = _gates_one_by_one(apart, corrected, data)
    found = list(gate_gradients(tied, groups, Calibration(batches=data)))
    for name, rows in wanted.items():
        assert torch.allclose(torch.cat([gates[name] for gates in found]), rows, rtol=1e-7, atol=1e-12), name
    for criterion in (hessian.hap, hessian.obd, gate_obd, obs.obs):
        scores = [criterion(net, groups, Calibration(batches=data, options=_FEW)) for net in (tied, apart)]
        assert all(torch.allclose(scores[0][name], scores[1][name]) for name in wanted)  # type: ignore[arg-type]


EVERY = (hessian.hap, hessian.obd, gate_obd, obs.obs, obs.obs_greedy, enhanced, fisher)
_FEW = {"min_probes": 4, "max_probes": 6}


@pytest.mark.parametrize("kind", ["spiking", "hybrid"])
def test_networks_with_spiking_neurons(kind: str) -> None:
    torch.manual_seed(0)
    model = load_reference(f"lm:{kind}", num_classes=11, units=8).model.eval()
    for parameter in model.parameters():
        parameter.data *= 4  # so that neurons fire
    groups, data = list(trace(model, tokens()[0][0][:2]).groups), tokens(2)
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    found = list(gate_gradients(model, groups, Calibration(batches=data)))
    assert len(runs) == 2 + 2
    for name, rows in _gates_one_by_one(model, groups, data).items():
        exact = torch.cat([gates[name] for gates in found])
        assert torch.allclose(exact, rows, rtol=1e-3, atol=1e-5 * float(rows.abs().max())), name
    before = copy.deepcopy(model.state_dict())
    for criterion in EVERY:
        twice = [
            criterion(model, groups, Calibration(batches=data, options=_FEW if criterion is not fisher else {}))
            for _ in range(2)
        ]
        for group in groups:
            scores = twice[0][group.name]
            assert torch.equal(scores, twice[1][group.name])  # type: ignore[arg-type]
            assert scores.shape == (group.units,) and bool(scores.isfinite().all())  # type: ignore[union-attr]
            assert float(scores.max()) > 0 and float(scores.min()) >= 0  # type: ignore[union-attr]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("criterion", [hessian.hap, hessian.obd, gate_obd, fisher])
def test_networks_in_half_precision_are_differentiated_in_single(criterion: Any) -> None:
    torch.manual_seed(0)
    model = Flattened().eval().bfloat16()
    groups, data = trace(Flattened(), example()).groups, _images(2)
    scores = criterion(model, groups, Calibration(batches=data, options=_FEW if criterion is not fisher else {}))
    assert next(model.parameters()).dtype == torch.bfloat16
    model.float()
    wanted = criterion(model, groups, Calibration(batches=data, options=_FEW if criterion is not fisher else {}))
    assert all(torch.equal(scores[name], wanted[name]) for name in scores)
    other = enhanced(Flattened().eval().bfloat16(), groups, Calibration(batches=data, options=_FEW))
    assert all(bool(values.isfinite().all()) for values in other.values())  # type: ignore[union-attr]


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


class _OnlyOnce(_NoBias):
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
        criterion(network(), [group], Calibration(batches=_images(2)))


def test_units_on_which_nothing_depends_have_no_relative_error() -> None:
    model = _NoBias().eval()
    index = torch.arange(7)[:, None]
    group = ChannelGroup("a", 7, 7, (Member("a", "weight", 0, index, "producer"),))
    options = {**_FEW, "stability": 1.0}
    found = Calibration(batches=_images(2), options=options)
    hessian.hap(model, [group], found)
    assert found.found["probes"] == 6 and found.found["relative_standard_error"] > 0
    with torch.no_grad():
        model.a.bias.fill_(-100)  # every unit is dead
    dead = Calibration(batches=_images(2), options=options)
    scores = hessian.hap(model, [group], dead)["a"]
    assert float(scores.max()) == 0 and "relative_standard_error" not in dead.found  # type: ignore[union-attr]


class _Coupled(nn.Module):
    """Adds the first sample of a batch to all: alone, every other sample is another network's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 7), nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x.mean((2, 3))))
        return self.b(x + x[:1].detach())


@pytest.mark.parametrize("first", [1, 4])
def test_samples_that_depend_on_their_batch_are_run_one_by_one(first: int) -> None:
    torch.manual_seed(0)
    model, (images, labels) = _Coupled().double(), _images(1, 4 + first)[0]
    index = torch.arange(7)[:, None]
    group = ChannelGroup("a", 7, 7, (Member("b", "weight", 1, index, "consumer"),))
    data = [(images[:first].double(), labels[:first]), (images[first:].double(), labels[first:])]
    wanted = _gates_one_by_one(model, [group], data)["a"]
    found = torch.cat([gates["a"] for gates in gate_gradients(model, [group], Calibration(batches=data))])
    assert torch.allclose(found, wanted, rtol=1e-6)


def test_a_standard_error_is_the_deviation_over_the_root_of_the_number() -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = [Draw({"a": value}, 2, place % 2) for place, value in enumerate(values)]
    found = stable_mean(draws, Stop(fewest=5, most=5), lambda _, mean: mean)
    assert torch.allclose(found.standard_errors["a"], values.std(0) / 5**0.5)
    assert torch.allclose(found.halves[1]["a"], values[1::2].mean(0))
    uneven = [Draw({"a": values[0]}, 1, 0), Draw({"a": values[1]}, 3, 1), Draw({"a": values[2]}, 4, 0)]
    found = stable_mean(uneven, Stop(fewest=3, most=3), lambda _, mean: mean)
    assert torch.allclose(found.means["a"], (values[0] + 3 * values[1] + 4 * values[2]) / 8)


def test_a_round_through_the_data_changes_halves() -> None:
    model, groups, data = CASES["convolution"]
    probe = probe_of(model)
    leaves = {"a.weight": probe.get_parameter("a.weight")}
    draws = hessian.curvature_draws(probe, leaves, Calibration(batches=data), "hap")
    assert [next(draws).half for _ in range(6)] == [0, 1, 1, 0, 0, 1]
    assert groups


@pytest.mark.parametrize("steps_first", [False, True])
def test_samples_and_positions_in_one_dimension(steps_first: bool) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 7), nn.Linear(7, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.a(x.mean(1)))  # (samples, rows, units)
            x = x.transpose(0, 1) if steps_first else x
            return self.b(x.flatten(0, 1)).unflatten(0, x.shape[:2]).square().mean(0 if steps_first else 1)

    torch.manual_seed(0)
    model, data, runs = Flat().double(), [(x.double(), y) for x, y in _images(2, 5)], []
    group = ChannelGroup("a", 7, 7, (Member("b", "weight", 1, torch.arange(7)[:, None], "consumer"),))
    wanted = _gates_one_by_one(model, [group], data)["a"]
    model.register_forward_hook(lambda *_: runs.append(1))
    found = torch.cat([gates["a"] for gates in gate_gradients(model, [group], Calibration(batches=data))])
    assert torch.allclose(found, wanted, rtol=1e-6) and len(runs) == 2 + 2
