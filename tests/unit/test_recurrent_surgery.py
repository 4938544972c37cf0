"""Hidden units of recurrent layers and cells: what is removed has to equal what is masked, by a reference of its own.

The reference is the network before pruning with the rows of removed units set to zero in every weight and bias: gates
are then constants and candidates zero, so that a state that begins with zeros stays zero.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import prunecli
from prunecli.errors import ModelError
from prunecli.surgery.recurrent.cell import wrap_cells
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.recurrent.stack import RecurrentStack, separate
from prunecli.surgery.recurrent.unrolling import unrolled
from prunecli.surgery.removal.compensate import compensate
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.taps import shows, tapped
from prunecli.surgery.tracing.trace import trace

_KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
_VOCABULARY = 11


class Language(nn.Module):
    """Embedding, recurrent layers, decoder; called with or without a state, on padded or packed sequences."""

    def __init__(self, kind: str = "lstm", hidden: int = 8, layers: int = 1, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.returns_state, self.packed = options.pop("returns_state", False), options.pop("packed", False)
        self.encoder = nn.Embedding(_VOCABULARY, 6)
        self.rnn = _KINDS[kind](6, hidden, layers, **options)
        width = options.get("proj_size") or hidden
        self.decoder = nn.Linear(width * (2 if self.rnn.bidirectional else 1), _VOCABULARY)

    def forward(self, tokens: Tensor, state: Any = None) -> Any:
        x, first = self.encoder(tokens), self.rnn.batch_first
        if self.packed:
            count = tokens.shape[0 if first else 1]
            lengths = torch.arange(count) % 3 + tokens.shape[1 if first else 0] - 2
            x = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
        x, state = self.rnn(x, state)
        if self.packed:
            x, _ = pad_packed_sequence(x, batch_first=first)
        scores = self.decoder(x)
        return (scores, state) if self.returns_state else scores


def _layers_of(network: nn.Module) -> dict[str, nn.Module]:
    rnn: Any = network.rnn
    return dict(rnn.named_children()) if isinstance(rnn, RecurrentStack) else {"l0": rnn}


def _masked(dense: nn.Module, result: prunecli.PruneResult, gates: int) -> nn.Module:
    """The dense network with the rows of removed units of its recurrent layers set to zero."""
    network = copy.deepcopy(dense)
    with torch.no_grad():
        for edit in result.report.edits:
            if edit.group.startswith("rnn"):
                suffix = edit.group.rpartition(".")[2] if "." in edit.group else "l0"
                gone = sorted(set(range(edit.width_before)) - set(edit.keep_indices))
                for name, weight in network.rnn.named_parameters():
                    if name.endswith(f"_{suffix}") and not name.startswith("weight_hr"):
                        weight.view(gates, edit.width_before, -1)[:, gone] = 0
    return network


def _difference(expected: Any, actual: Any) -> float:
    pairs = zip(tree_leaves(expected), tree_leaves(actual), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def _pruned(model: nn.Module, inputs: Any, **params: Any) -> prunecli.PruneResult:
    given_params: dict[str, Any] = {"ratio": 0.5, "min_width": 1, "round_to": 1, **params}
    return prunecli.prune(model, "l2", example_inputs=inputs, **given_params)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(_KINDS)),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    packed=st.booleans(),
    hidden=st.integers(3, 9),
    ratio=st.sampled_from((0.3, 0.5, 0.8)),
    seed=st.integers(0, 1000),
)
def test_removed_equals_masked(
    kind: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    packed: bool,
    hidden: int,
    ratio: float,
    seed: int,
) -> None:
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias, "packed": packed}
    dense = Language(kind, hidden, layers, **options).double()
    tokens = torch.randint(0, _VOCABULARY, (4, 5), generator=torch.Generator().manual_seed(seed))
    result = _pruned(dense, tokens, ratio=ratio, scope="global")
    reference = _masked(dense, result, _GATES[kind])
    other = torch.randint(0, _VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(seed + 1))
    for inputs in (tokens, other):
        assert _difference(reference(inputs), result.model(inputs)) < 1e-12
    directions = layers * (2 if bidirectional else 1)
    assert len(_layers_of(result.model)) == directions
    left = [layer.weight_hh_l0.shape[1] for layer in _layers_of(result.model).values()]
    lost = {edit.group: edit.width_after for edit in result.report.edits}
    assert sorted(lost.values()) == sorted(width for width in left if width < hidden)


def test_layers_can_have_different_widths() -> None:
    dense = Language("lstm", 16, 2)
    result = _pruned(dense, torch.randint(0, _VOCABULARY, (5, 2)), layer_ratio={"rnn.l0": 0.75, "rnn.l1": 0.25})
    assert [(e.group, e.width_before, e.width_after) for e in result.report.edits] == [
        ("rnn.l0", 16, 4),
        ("rnn.l1", 16, 12),
    ]
    first, second = _layers_of(result.model).values()
    assert (first.hidden_size, second.input_size, second.hidden_size) == (4, 4, 12)


@pytest.mark.parametrize("kind", sorted(_KINDS))
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, False), (2, True)])
def test_a_state_is_carried_from_batch_to_batch(kind: str, layers: int, bidirectional: bool, tmp_path: Path) -> None:
    """States keep their shape: whoever made them for the original can go on making them."""
    dense = Language(kind, 8, layers, returns_state=True, bidirectional=bidirectional).double()
    tokens = torch.randint(0, _VOCABULARY, (12, 2))
    state = torch.zeros(layers * (2 if bidirectional else 1), 2, 8, dtype=torch.float64)
    begin: Any = (state, state.clone()) if kind == "lstm" else state
    result = _pruned(dense, (tokens[:4], begin))
    result.save(tmp_path / "pruned.safetensors")
    fresh = Language(kind, 8, layers, returns_state=True, bidirectional=bidirectional).double()
    restored = prunecli.load(tmp_path / "pruned.safetensors", fresh)
    reference = _masked(dense, result, _GATES[kind])
    for network in (result.model, restored):
        expected_state = actual_state = begin
        for batch in tokens.split(4):
            expected, expected_state = reference(batch, expected_state)
            actual, actual_state = network(batch, actual_state)
            assert _difference((expected, expected_state), (actual, actual_state)) < 1e-12
    if not bidirectional:
        pieces, state_after = [], None
        for batch in tokens.split(3):
            scores, state_after = result.model(batch, state_after)
            pieces.append(scores)
        assert _difference(result.model(tokens), (torch.cat(pieces), state_after)) < 1e-12


def test_projections_shrink_with_their_readers() -> None:
    dense = Language("lstm", 40, 2, proj_size=12, batch_first=True, returns_state=True).double()
    tokens = torch.randint(0, _VOCABULARY, (2, 5))
    begin = (torch.zeros(2, 2, 12).double(), torch.zeros(2, 2, 40).double())
    result = _pruned(dense, (tokens, begin), scope="local")
    assert [(edit.width_before, edit.width_after) for edit in result.report.edits] == [(40, 20), (12, 6)] * 2
    assert [edit.group for edit in result.report.edits][:2] == ["rnn.l0", "rnn.l0#projection"]
    _, (hidden, cells) = result.model(tokens, begin)
    assert hidden.shape == (2, 2, 12) and cells.shape == (2, 2, 40)
    kept = [edit.keep_indices for edit in result.report.edits]
    for layer in range(2):
        assert set(cells[layer].abs().sum(0).nonzero().flatten().tolist()) == set(kept[2 * layer])
        assert set(hidden[layer].abs().sum(0).nonzero().flatten().tolist()) == set(kept[2 * layer + 1])


class Tied(nn.Module):
    """The layout of a word-level language model whose decoder shares the embedding, with a state from outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.rnn = nn.Embedding(_VOCABULARY, 8), nn.LSTM(8, 8, 2)
        self.decoder = nn.Linear(8, _VOCABULARY)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, state: Any) -> Any:
        x, state = self.rnn(self.encoder(tokens), state)
        return self.decoder(x), state


def test_a_tied_decoder_shrinks_with_the_embedding_and_the_last_layer() -> None:
    state = (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))
    result = _pruned(Tied(), (torch.randint(0, _VOCABULARY, (5, 3)), state))
    network = result.model
    assert network.encoder.weight is network.decoder.weight
    widths = {edit.group: edit.width_after for edit in result.report.edits}
    assert network.encoder.embedding_dim == network.decoder.in_features == network.rnn.l1.hidden_size
    assert widths == {"encoder": network.encoder.embedding_dim, "rnn.l0": network.rnn.l0.hidden_size}


class Reading(nn.Module):
    """Convolutions, a bidirectional recurrent layer over columns, a linear layer over both directions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.rnn, self.head = nn.LSTM(12 * 6, 16, 2, bidirectional=True, dropout=0.2), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        batch, channels, height, width = y.shape
        return self.head(self.rnn(y.permute(3, 0, 1, 2).reshape(width, batch, channels * height))[0])


def test_convolutions_before_and_a_linear_layer_after_shrink_too(tmp_path: Path) -> None:
    result = _pruned(Reading(), torch.randn(2, 1, 8, 9), prune_stem=True, scope="local")
    network: Any = result.model.eval()
    assert (network.first.out_channels, network.second.out_channels, network.head.in_features) == (4, 6, 16)
    assert network.rnn.l0.input_size == network.rnn.l0_reverse.input_size == 36
    x = torch.randn(3, 1, 8, 14)
    exported = torch.export.export(network, (x,), strict=False).module()
    assert _difference(network(x), exported(x)) < 1e-6
    result.save(tmp_path / "pruned.safetensors")
    restored = prunecli.load(tmp_path / "pruned.safetensors", Reading())
    assert torch.equal(restored(x), network(x))
    assert _difference(network(x).double(), copy.deepcopy(network).double()(x.double())) < 1e-5
    for rnn in network.rnn.children():
        assert all(any(weight is own for own in rnn.parameters()) for weight in rnn._flat_weights)
    network.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert torch.isfinite(copy.deepcopy(network).eval().bfloat16()(x.bfloat16()).float()).all()


class Translating(nn.Module):
    """An encoder whose state a decoder begins with, and attention over its outputs."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(_VOCABULARY, 6)
        self.encoder = nn.GRU(6, 12, layers, batch_first=True)
        self.decoder = nn.GRU(6, 12, layers, batch_first=True)
        self.attention, self.head = nn.Linear(12, 12), nn.Linear(24, _VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.embedding(source))
        steps = []
        for step in self.embedding(target).split(1, dim=1):
            own, state = self.decoder(step, state)
            weights = torch.softmax(self.attention(own) @ memory.transpose(1, 2), dim=-1)
            steps.append(self.head(torch.cat((own, weights @ memory), dim=-1)))
        return torch.cat(steps, dim=1)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_decoder_begins_with_the_state_of_an_encoder(layers: int) -> None:
    source, target = torch.randint(0, _VOCABULARY, (2, 2, 5))
    result = _pruned(Translating(layers), (source, target), scope="local")
    widths = {edit.group: edit.width_after for edit in result.report.edits}
    assert {name: width for name, width in widths.items() if "coder" in name} == {
        f"{part}coder.l{layer}": 6 for part in ("en", "de") for layer in range(layers)
    }
    assert result.model(source[:1], target[:1, :3]).shape == (1, 3, _VOCABULARY)


class Looping(nn.Module):
    """Two cells in a loop whose first states have widths that are written in the code."""

    def __init__(self, kind: type[nn.RNNCellBase], literal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.cell, self.second = nn.Linear(6, 16), kind(16, 12), kind(12, 10)
        self.head, self.literal = nn.Linear(10, 2), literal
        self.start = torch.linspace(-0.5, 0.5, 12)  # neither a parameter nor a buffer

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        other: Any = None
        if self.literal:
            zeros = torch.zeros(x.shape[1], 1).to(x)
            state, other = zeros + self.start, zeros + torch.zeros(10).to(x)
            if isinstance(getattr(self.cell, "cell", self.cell), nn.LSTMCell):
                state, other = (state, state.clone()), (other, other.clone())
        for step in F.relu(self.first(x)):
            state = self.cell(step, state)
            other = self.second(state[0] if isinstance(state, tuple) else state, other)
        return self.head(other[0] if isinstance(other, tuple) else other)


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_shrink_with_their_inputs_and_states(kind: type[nn.RNNCellBase], literal: bool, tmp_path: Path) -> None:
    dense, x = Looping(kind, literal), torch.randn(4, 2, 6)
    result = _pruned(dense, x, scope="local", prune_stem=True)
    network: Any = result.model
    cells = [getattr(cell, "cell", cell) for cell in (network.cell, network.second)]
    assert [(cell.input_size, cell.hidden_size) for cell in cells] == [(8, 6), (6, 5)]
    result.save(tmp_path / "pruned.safetensors")
    restored = prunecli.load(tmp_path / "pruned.safetensors", Looping(kind, literal))
    longer = torch.randn(7, 3, 6)
    assert torch.equal(restored(longer), network.eval()(longer))
    reference = copy.deepcopy(dense)
    with torch.no_grad():
        for edit in result.report.edits:
            gone = sorted(set(range(edit.width_before)) - set(edit.keep_indices))
            layer = reference.get_submodule(edit.group.removesuffix(".cell") if "." in edit.group else edit.group)
            if layer is reference.cell:
                reference.start[gone] = 0
            for name, weight in layer.named_parameters():
                if isinstance(layer, nn.Linear) or name.startswith(("weight_ih", "weight_hh", "bias")):
                    weight.view(-1, edit.width_before, *weight.shape[1:])[:, gone] = 0
    assert _difference(reference(longer), network(longer)) < 1e-6


class Stated(nn.Module):
    """A single layer that begins with a state that another layer computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.state, self.rnn, self.head = nn.Linear(6, 16), nn.GRU(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.state(x[:1]))[0])


def test_a_layer_that_computes_the_first_state_shrinks_with_it() -> None:
    result = _pruned(Stated(), torch.randn(5, 3, 6), prune_stem=True)
    assert (result.model.state.out_features, result.model.rnn.hidden_size, result.model.head.in_features) == (8, 8, 8)


class Meddling(nn.Module):
    """A network whose code reads weights of its recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(6, 16, 2), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0]) + self.rnn.weight_hh_l0.mean()


def test_a_layer_that_is_used_in_other_ways_keeps_its_form() -> None:
    """All its layers then lose the same units."""
    model, x = Meddling(), torch.randn(5, 3, 6)
    assert in_form(model, x) is model
    assert type(_pruned(model, x, ratio=0.5).model.rnn) is nn.GRU


class Training(nn.Module):
    """A network whose code reads weights of its recurrent layer in training alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(6, 16, 2, dropout=0.5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.rnn(x)[0])
        return scores + self.rnn.weight_hh_l0.square().sum() if self.training else scores


def test_what_training_reads_of_a_layer_counts() -> None:
    model, x = Training(), torch.randn(5, 3, 6)
    assert in_form(model, x) is model
    assert in_form(Language("gru", 8, 2, dropout=0.5), torch.randint(0, _VOCABULARY, (5, 2))).rnn.dropout == 0.5


class Halved(nn.LSTM):
    """A class of somebody's own that computes something else than the one it derives from."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, state = super().forward(input, hx)
        return output / 2, state


def test_layers_that_compute_something_else_are_watched_as_they_are() -> None:
    torch.manual_seed(0)
    layer = Halved(6, 8)
    network, x = nn.Sequential(layer), torch.randn(5, 3, 6)
    assert not shows(layer, "weight_hh_l0")
    patched = nn.LSTM(6, 8)
    patched.forward = layer.forward  # type: ignore[method-assign]
    assert not shows(patched, "weight_hh_l0") and shows(nn.LSTM(6, 8), "weight_hh_l0")
    before = network(x)[0]
    with tapped(network, ["0.weight_ih_l0"] if shows(layer, "weight_ih_l0") else [], lambda _, values: values):
        assert torch.equal(network(x)[0], before)


@pytest.mark.parametrize("kind", sorted(_KINDS))
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_packed_sequences_are_watched_step_by_step(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = _KINDS[kind](5, 7, **options).double().eval()
    packed = pack_padded_sequence(torch.randn(6, 4, 5).double(), torch.tensor([3, 6, 1, 5]), enforce_sorted=False)
    rows: dict[str, int] = {}

    def tap(name: str, values: Tensor) -> Tensor:
        rows[name] = rows.get(name, 0) + len(values)
        return values

    forward = unrolled(layer, tap)
    _, state = layer(packed)
    for begin in (None, state):
        assert (
            _difference(
                tuple(tree_leaves((layer(packed, begin)[0].data, layer(packed, begin)[1]))),
                tuple(tree_leaves((forward(packed, begin)[0].data, forward(packed, begin)[1]))),
            )
            < 1e-12
        )
    assert set(rows.values()) == {4 * 15}  # four calls of 3 + 6 + 1 + 5 steps


class Reached(nn.Module):
    """A network that reaches a recurrent layer through a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = []
        for index, width in enumerate((6, 16)):
            layer = nn.LSTM(width, 8, bidirectional=True)
            self.add_module(f"layer{index}", layer)
            self.layers.append(layer)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return self.head(x)


def test_a_layer_that_is_reached_in_two_ways_keeps_its_form(tmp_path: Path) -> None:
    x = torch.randn(5, 3, 6)
    result = _pruned(Reached(), x)
    result.save(tmp_path / "pruned.safetensors")
    restored: Any = prunecli.load(tmp_path / "pruned.safetensors", Reached())
    assert torch.equal(restored(x), result.model.eval()(x))
    assert type(restored.layer0) is nn.LSTM and restored.layer0.hidden_size < 8


@pytest.mark.parametrize("change", ["forward", "gain", "hook", "backward"])
def test_a_layer_that_was_changed_keeps_its_form(change: str) -> None:
    model, tokens = Language("lstm", 8, 2), torch.randint(0, _VOCABULARY, (5, 2))
    rnn: Any = model.rnn
    if change == "forward":
        rnn.forward = lambda x, hx=None: nn.LSTM.forward(rnn, x, hx)
    elif change == "gain":
        rnn.gain = 3.0
    elif change == "hook":
        rnn.register_forward_hook(lambda module, args, output: (output[0] * 2, output[1]))
    else:
        rnn.register_full_backward_hook(lambda module, before, after: None)
    assert in_form(model, tokens) is model
    assert type(in_form(Language("lstm", 8, 2), tokens).rnn) is RecurrentStack


@pytest.mark.parametrize("shape", [(4, 2, 8), (2, 2, 11)])
def test_states_of_another_shape_are_refused_as_by_the_original(shape: tuple[int, ...]) -> None:
    tokens, state = torch.randint(0, _VOCABULARY, (5, 2)), torch.zeros(shape)
    network = in_form(Language("gru", 8, 2), tokens)
    for one in (network, Language("gru", 8, 2)):
        with pytest.raises(RuntimeError, match=r"(?i)expected"):
            one(tokens, state)


def test_cells_shrink_further_in_the_steps_of_a_schedule() -> None:
    result = _pruned(
        Looping(nn.GRUCell, True), torch.randn(4, 2, 6), ratio=0.75, schedule="linear", steps=3, scope="local"
    )
    network: Any = result.model
    assert (network.cell.cell.hidden_size, network.second.cell.hidden_size) == (3, 3)


def test_a_network_without_values_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="has no values yet"):
        _pruned(Language("lstm", 8, 2).to("meta"), torch.randint(0, _VOCABULARY, (5, 2)))


class Cleared(Language):
    """Reads the attributes that an `nn.LSTM` has and calls its methods."""

    def forward(self, tokens: Tensor, state: Any = None) -> Any:
        self.rnn.flatten_parameters()
        size = (self.rnn.num_layers * (2 if self.rnn.bidirectional else 1), tokens.shape[1], self.rnn.hidden_size)
        zeros = torch.zeros(size).to(self.decoder.weight)
        return super().forward(tokens, (zeros, zeros))


def test_attributes_of_the_original_layer_can_be_read() -> None:
    dense, tokens = Cleared("lstm", 8, 2).double(), torch.randint(0, _VOCABULARY, (5, 2))
    result = _pruned(dense, tokens)
    assert isinstance(result.model.rnn, RecurrentStack)
    assert _difference(_masked(dense, result, 4)(tokens), result.model(tokens)) < 1e-12


def test_the_result_can_be_pruned_again(tmp_path: Path) -> None:
    dense, tokens = Language("lstm", 16, 2), torch.randint(0, _VOCABULARY, (5, 2))
    once = _pruned(dense, tokens, scope="local")
    twice = _pruned(once.model, tokens, scope="local")
    assert [layer.hidden_size for layer in _layers_of(twice.model).values()] == [4, 4]
    twice.save(tmp_path / "twice.safetensors")
    restored = prunecli.load(tmp_path / "twice.safetensors", Language("lstm", 16, 2))
    assert torch.equal(restored(tokens), twice.model.eval()(tokens))
    steps = _pruned(dense, tokens, scope="local", schedule="linear", steps=2)
    assert [layer.hidden_size for layer in _layers_of(steps.model).values()] == [8, 8]


def test_the_dense_network_is_not_changed() -> None:
    dense = Language("lstm", 16, 2, bidirectional=True)
    before = copy.deepcopy(dense.state_dict())
    _pruned(dense, torch.randint(0, _VOCABULARY, (5, 2)))
    assert type(dense.rnn) is nn.LSTM
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("form", [separate, wrap_cells])
def test_a_manifest_that_names_no_recurrent_layer_is_refused(form: Any) -> None:
    with pytest.raises(ModelError, match="'head', which is no recurrent"):
        form(Stated(), ["head"])
    with pytest.raises(ModelError, match="'', which is no recurrent"):
        form(nn.LSTM(2, 2), [""])


@pytest.mark.parametrize("packed", [False, True])
def test_a_projection_may_become_as_wide_as_the_cell_state(packed: bool) -> None:
    """torch takes such a layer for one without a projection."""
    dense = Language("lstm", 40, 1, proj_size=12, bias=not packed, packed=packed).double()
    tokens = torch.randint(0, _VOCABULARY, (5, 3))
    result = _pruned(dense, tokens, layer_ratio={"rnn.l0": 0.7})
    layer = result.model.rnn.l0
    assert layer.hidden_size == layer.proj_size == 12
    assert _difference(_masked(dense, result, 4)(tokens), result.model(tokens)) < 1e-12
    scores, (hidden, cells) = result.model.rnn(result.model.encoder(tokens))
    again = result.model.rnn(result.model.encoder(tokens), (hidden, cells))
    assert (scores.shape[-1], cells.shape[-1], again[1][1].shape[-1]) == (12, 40, 40)
    result.model.train()(tokens).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


class _Twins(nn.Module):
    """Two recurrent layers or cells in which unit 1 always equals unit 0, and reads and is read in its own way."""

    def __init__(self, kind: str, cells: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cells = cells
        if cells:
            cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[kind]
            self.first, self.second = cell(5, 6), cell(6, 6)
            width = 6
        else:
            self.rnn = _KINDS[kind](5, 6, 2, **options)
            width = 12 if options.get("bidirectional") else 6
        self.head = nn.Linear(width, 3)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if not name.startswith("head"):
                    gates = weight.view(_GATES[kind], 6, -1)
                    gates[:, 1] = gates[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.cells:
            return self.head(self.rnn(x)[0])
        first: Any = None
        second: Any = None
        for step in x:
            first = self.first(step, first)
            second = self.second(first[0] if isinstance(first, tuple) else first, second)
        return self.head(second[0] if isinstance(second, tuple) else second)


@pytest.mark.parametrize("kind", sorted(_KINDS))
@pytest.mark.parametrize(
    "cells, options", [(False, {}), (False, {"bidirectional": True}), (False, {"bias": False}), (True, {})]
)
def test_compensation_reaches_all_readers_of_hidden_units(kind: str, cells: bool, options: dict[str, Any]) -> None:
    """A unit that equals another one is made up for, in the layer's own weights too."""
    batches = [torch.randn(7, 16, 5).double() for _ in range(8)]
    dense = in_form(_Twins(kind, cells, **options).double().eval(), batches[0])
    groups = trace(dense, batches[0]).groups
    pruned = copy.deepcopy(dense)
    keep = {group.name: torch.tensor([0, 2, 3, 4, 5]) for group in groups}
    remove(pruned, groups, keep)
    x = torch.cat(batches, dim=1)
    lost = _difference(dense(x), pruned(x))
    weights = compensate(dense, pruned, groups, keep, batches, "ls", intercept=False)
    # Every layer but the first reads units below it, all layers read their own, and so does the head.
    assert weights == (7 if options.get("bidirectional") else 4)
    assert _difference(dense(x), pruned(x)) < 0.02 * lost
