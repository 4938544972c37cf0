"""Derivatives by gates of recurrent, tied, spiking and half precision networks, one sample after the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.criteria import hessian, obs
from prunecli.criteria.base import Calibration
from prunecli.criteria.enhanced import enhanced
from prunecli.criteria.gate_hessian import gate_obd
from prunecli.criteria.gradient import fisher, gate_gradients
from prunecli.errors import MethodError
from prunecli.models.loading import load_reference
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.recurrent.unrolling import unrolled
from prunecli.surgery.tracing.trace import trace
from tests.unit.importance import FEW, gates_one_by_one, images
from tests.unit.networks import Flattened, example
from tests.unit.recurrent import Words, tokens, words_groups

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


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units_take_one_backward_pass_for_a_batch(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(3)
    model = Words(kind).double().eval()
    groups, data = words_groups(model), tokens(3, samples=5)
    exact = gates_one_by_one(model, groups, data)
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
    exact, count = gates_one_by_one(model, groups, data), []
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
        for name, wanted in gates_one_by_one(model, groups, [batch]).items():
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
    wanted = gates_one_by_one(apart, corrected, data)
    found = list(gate_gradients(tied, groups, Calibration(batches=data)))
    for name, rows in wanted.items():
        assert torch.allclose(torch.cat([gates[name] for gates in found]), rows, rtol=1e-7, atol=1e-12), name
    for criterion in (hessian.hap, hessian.obd, gate_obd, obs.obs):
        scores = [criterion(net, groups, Calibration(batches=data, options=FEW)) for net in (tied, apart)]
        assert all(torch.allclose(scores[0][name], scores[1][name]) for name in wanted)  # type: ignore[arg-type]


_EVERY = (hessian.hap, hessian.obd, gate_obd, obs.obs, obs.obs_greedy, enhanced, fisher)


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
    for name, rows in gates_one_by_one(model, groups, data).items():
        exact = torch.cat([gates[name] for gates in found])
        assert torch.allclose(exact, rows, rtol=1e-3, atol=1e-5 * float(rows.abs().max())), name
    before = copy.deepcopy(model.state_dict())
    for criterion in _EVERY:
        twice = [
            criterion(model, groups, Calibration(batches=data, options=FEW if criterion is not fisher else {}))
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
    groups, data = trace(Flattened(), example()).groups, images(2)
    scores = criterion(model, groups, Calibration(batches=data, options=FEW if criterion is not fisher else {}))
    assert next(model.parameters()).dtype == torch.bfloat16
    model.float()
    wanted = criterion(model, groups, Calibration(batches=data, options=FEW if criterion is not fisher else {}))
    assert all(torch.equal(scores[name], wanted[name]) for name in scores)
    other = enhanced(Flattened().eval().bfloat16(), groups, Calibration(batches=data, options=FEW))
    assert all(bool(values.isfinite().all()) for values in other.values())  # type: ignore[union-attr]


class _Coupled(nn.Module):
    """Adds the first sample of a batch to all, and so says something else of every other one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 7), nn.Linear(7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x.mean((2, 3))))
        return self.b(x + x[:1].detach())


@pytest.mark.parametrize("first", [1, 4])
def test_samples_that_depend_on_their_batch_are_refused(first: int) -> None:
    torch.manual_seed(0)
    model, (inputs, labels) = _Coupled().double(), images(1, 4 + first)[0]
    index = torch.arange(7)[:, None]
    group = ChannelGroup("a", 7, 7, (Member("b", "weight", 1, index, "consumer"),))
    data = [(inputs[:first].double(), labels[:first]), (inputs[first:].double(), labels[first:])]
    with pytest.raises(MethodError, match="samples have to come first"):
        list(gate_gradients(model, [group], Calibration(batches=data)))


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
    model, data, runs = Flat().double(), [(x.double(), y) for x, y in images(2, 5)], []
    group = ChannelGroup("a", 7, 7, (Member("b", "weight", 1, torch.arange(7)[:, None], "consumer"),))
    wanted = gates_one_by_one(model, [group], data)["a"]
    model.register_forward_hook(lambda *_: runs.append(1))
    found = torch.cat([gates["a"] for gates in gate_gradients(model, [group], Calibration(batches=data))])
    assert torch.allclose(found, wanted, rtol=1e-6) and len(runs) == 2 + 2
