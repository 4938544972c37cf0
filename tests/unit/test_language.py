"""Language models: what they compute, what they remember, and how they are trained and judged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunecli.api import prune
from prunecli.criteria.base import default_loss, token_loss
from prunecli.data.token_batches import StreamBatches, TextSplit, evaluation_streams
from prunecli.data.vocabulary import UNKNOWN, Vocabulary
from prunecli.engine.carrying import Carrier
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.hooks import Hook
from prunecli.engine.tasks.base import Labels
from prunecli.engine.tasks.index import task_of
from prunecli.engine.tasks.language import CharacterLanguage
from prunecli.errors import ModelError
from prunecli.measure.neurons import spiking_neurons
from prunecli.models.catalog import build
from prunecli.models.loading import load_file, load_reference, restore, save
from prunecli.report.schema import Metrics
from prunecli.studies.coverage import attempt
from tests.unit.test_engine import CPU, _digest
from tests.unit.test_resuming import _Dies, _Stopped, _store

NAMES = ["lstm", "gru", "rnn", "spiking", "hybrid"]
TASK = CharacterLanguage(Labels("a text", "character-language", tuple("abcdefghij")))


def _network(name: str = "lstm", **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    name, of, cell = name.partition(" of ")
    own: dict[str, Any] = {"cell": cell.lower()} if of else {}
    if name in ("spiking", "hybrid"):
        own["v_threshold"] = 0.2  # so that neurons fire
    return build(f"lm:{name}", **({"num_classes": 10, "units": 6} | own | kwargs)).eval()


def _text(tokens: int = 400, length: int = 7, seed: int = 0) -> TextSplit:
    numbers = np.random.default_rng(seed).integers(0, 10, tokens)
    numbers[1::2] = (numbers[:-1:2] * 3 + 1)[: len(numbers[1::2])] % 10  # something to learn
    return TextSplit(numbers, length, Vocabulary("char", (*"abcdefghi", UNKNOWN)))


class Example(nn.Module):
    """The recurrent network of PyTorch's word language model example, which puts time first."""

    def __init__(self, kind: str, vocabulary: int, embedding: int, units: int, layers: int, tied: bool) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(vocabulary, embedding)
        self.rnn: nn.RNNBase = getattr(nn, kind)(embedding, units, layers, dropout=0.2)
        self.decoder = nn.Linear(units, vocabulary)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.rnn(self.drop(self.encoder(tokens.t())))
        decoded: Tensor = self.decoder(self.drop(outputs))
        return decoded.transpose(0, 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_weights_of_the_example_load_and_compute_the_same(tmp_path: Path, kind: str, tied: bool) -> None:
    torch.manual_seed(0)
    example = Example(kind, 23, 9 if tied else 5, 9, 3, tied).eval()
    torch.save(example.state_dict(), tmp_path / "model.pt")
    loaded = load_file(tmp_path / "model.pt")
    assert loaded.manifest.architecture.ref == f"lm:{kind.lower()}"
    arguments = loaded.manifest.architecture.kwargs
    sizes = [arguments[name] for name in ("num_classes", "embedding", "units", "layers", "tied")]
    assert sizes == [23, 9 if tied else 5, 9, 3, tied]
    tokens = torch.randint(23, (4, 11))
    assert torch.equal(loaded.model(tokens), example(tokens))
    assert f"read as lm:{kind.lower()}: 3 layers of 9 units, a vocabulary of 23" in loaded.notes[0]
    assert ("assumed nonlinearity = tanh" in " ".join(loaded.notes)) == (kind == "RNN")
    with pytest.raises(ModelError, match=r"model\.pt: its layers have the gates of lm:.*leave --arch out"):
        load_file(tmp_path / "model.pt", "lm:gru" if kind != "GRU" else "lm:lstm")


def test_a_whole_pickled_example_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = Example("LSTM", 23, 5, 9, 2, False).eval()
    torch.save(example, tmp_path / "model.pt")
    tokens = torch.randint(23, (4, 11))
    loaded = load_file(tmp_path / "model.pt")
    assert torch.equal(loaded.model(tokens), example(tokens))
    assert loaded.manifest.architecture.kwargs["dropout"] == 0.2


def test_a_pickled_network_says_its_nonlinearity(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = Example("RNN", 23, 5, 9, 2, False).eval()
    example.rnn = nn.RNN(5, 9, 2, nonlinearity="relu")
    torch.save(example, tmp_path / "model.pt")
    loaded = load_file(tmp_path / "model.pt")
    tokens = torch.randint(23, (4, 11))
    assert torch.equal(loaded.model(tokens), example(tokens))
    assert "assumed" not in " ".join(loaded.notes)
    torch.save(example.state_dict(), tmp_path / "weights.pt")
    named = load_file(tmp_path / "weights.pt", "lm:rnn", kwargs={"nonlinearity": "relu"})
    assert torch.equal(named.model(tokens), example(tokens))


def test_weights_with_more_than_the_example_has_are_refused(tmp_path: Path) -> None:
    state = Example("LSTM", 23, 5, 9, 2, False).state_dict()
    state["rnn.weight_ih_l0_reverse"] = state["rnn.weight_ih_l0"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"1 tensors are unknown to it, first 'rnn\.weight_ih_l0_reverse'"):
        load_file(tmp_path / "model.pt")


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_comes_back(tmp_path: Path, name: str) -> None:
    loaded = load_reference(f"lm:{name}", num_classes=12, units=5, tied=True, dropout=0.5)
    assert loaded.manifest.architecture.kwargs["embedding"] == 5
    save(tmp_path / "x.safetensors", loaded.model, loaded.manifest)
    back, _ = restore(tmp_path / "x.safetensors")
    tokens = torch.randint(12, (3, 4))
    assert torch.equal(back(tokens), loaded.model(tokens)) and back.decoder.weight is back.encoder.weight


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([*NAMES, "hybrid of LSTM"]), st.integers(1, 3), st.lists(st.integers(1, 6), min_size=1, max_size=5)
)
def test_carried_state_equals_one_long_pass(name: str, layers: int, cuts: list[int]) -> None:
    network = _network(name, layers=layers).double()
    tokens = torch.randint(10, (3, sum(cuts)), generator=torch.Generator().manual_seed(sum(cuts)))
    carrier = Carrier(_streams())
    with torch.no_grad():
        pieces = [carrier.scores(network, piece) for piece in tokens.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), network(tokens), rtol=0, atol=1e-12)
    if len(cuts) > 1:
        carrier.forget()
        forgotten = [carrier.scores(network, piece) for piece in tokens.split(cuts, dim=1)]
        assert torch.equal(forgotten[0], pieces[0])
        alone = Carrier([])
        assert name == "spiking" or not torch.equal(alone.scores(network, tokens.split(cuts, dim=1)[1]), pieces[1])


def _streams() -> StreamBatches:
    return StreamBatches(_text(), 4, whole=False)


def test_what_is_carried_is_cut_off_from_its_graph() -> None:
    network, carrier = _network(), Carrier(_streams())
    first, second = torch.randint(10, (2, 3)), torch.randint(10, (2, 3))
    carrier.scores(network, first).sum().backward()
    carrier.scores(network, second).sum().backward()  # else torch complains about a graph that is gone
    assert not any(tensor.requires_grad for tensor in carrier.state())


@pytest.mark.parametrize("length", [5, 64])
def test_figures_are_those_of_one_pass_over_the_text(length: int) -> None:
    network, text = _network(), _text(60, length)
    figures = evaluate(network, evaluation_streams(text), CPU, task=TASK)
    tokens = torch.from_numpy(text.tokens)[None]
    with torch.no_grad():
        loss = float(F.cross_entropy(network(tokens[:, :-1])[0], tokens[0, 1:]))
    assert figures.tokens == 59 and figures.loss == pytest.approx(loss, rel=1e-6)
    named = TASK.named(figures)
    assert named["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert named["bits_per_character"] == pytest.approx(loss / math.log(2), rel=1e-6)
    assert figures.score == named["bits_per_character"] == figures.logged["bits_per_character"]


def test_words_are_scored_by_perplexity_and_less_is_better() -> None:
    task = task_of(Labels("a text", "word-language", ("a", "b")))
    meter = task.meter(CPU)
    meter.update(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))
    figures = meter.compute()
    assert figures.score == pytest.approx(2.0) and figures.tokens == 2
    assert task.named(figures)["bits_per_token"] == pytest.approx(1.0)
    assert task.better(1.0, 2.0) and not task.better(2.0, 1.0)


def test_a_perplexity_beyond_numbers_is_named() -> None:
    figures = TASK.figures(1e4, 10)
    metrics = Metrics(**TASK.named(figures))
    assert metrics.perplexity is None and metrics.loss == 1e4 and metrics.nonfinite == ("perplexity",)


def test_the_loss_averages_over_what_counts() -> None:
    scores, labels = torch.randn(2, 4, 10), torch.randint(10, (2, 4))
    assert float(TASK.loss(scores, labels, 0.0)) == pytest.approx(
        float(F.cross_entropy(scores.reshape(8, 10), labels.reshape(8)))
    )
    labels[0] = -100
    assert float(TASK.loss(scores, labels, 0.0)) == pytest.approx(float(F.cross_entropy(scores[1], labels[1])))
    assert float(TASK.teacher_loss(scores, scores, 2.0)) == pytest.approx(0, abs=1e-6)


def test_as_many_tokens_in_a_sequence_as_in_the_vocabulary() -> None:
    """`default_loss` cannot tell which dimension is which, and the loss of language models does not have to."""
    scores, labels = torch.randn(2, 5, 5), torch.randint(5, (2, 5))
    expected = sum(F.cross_entropy(row, label) for row, label in zip(scores, labels, strict=True))
    torch.testing.assert_close(token_loss(scores, labels), expected)
    wider, more = torch.randn(2, 5, 8), torch.randint(8, (2, 5))
    torch.testing.assert_close(token_loss(wider, more), default_loss(wider, more))
    own = wider.argmax(dim=-1)
    torch.testing.assert_close(token_loss(wider, None), token_loss(wider, own))


def test_training_carries_on_and_begins_each_epoch_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of nothing, the losses are those of a network that reads the text from end to end."""
    network, seen = _network(), []

    class _Watch(Hook):
        name = "watch"

        def loss(self, loss: Tensor, batch: Any) -> Tensor:
            seen.append(batch.outputs.detach())
            return loss

    batches = StreamBatches(_text(), 4, whole=False)
    config = FitConfig(epochs=2, lr=1e-30, optimizer="sgd", schedule="constant", weight_decay=0)
    fit(network, batches, None, config, CPU, task=TASK, hooks=[_Watch()])
    whole = torch.cat([inputs for inputs, _ in batches], dim=1)
    with torch.no_grad():
        expected = network(whole)
    for epoch in (seen[: len(batches)], seen[len(batches) :]):
        torch.testing.assert_close(torch.cat(epoch, dim=1), expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_carries_on_too() -> None:
    network, teacher = _network(), _network()
    teacher.load_state_dict(network.state_dict())
    losses = []

    class _Watch(Hook):
        name = "watch"

        def loss(self, loss: Tensor, batch: Any) -> Tensor:
            losses.append(loss.item())
            return loss

    config = FitConfig(epochs=2, lr=1e-30, optimizer="sgd", schedule="constant", weight_decay=0)
    hooks = [Distillation(teacher, TASK, 1.0), _Watch()]
    fit(network, StreamBatches(_text(), 4, whole=False), None, config, CPU, task=TASK, hooks=hooks)
    assert max(losses) < 1e-6


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("lstm", "spiking") else ()) for name in NAMES]
)
def test_stopped_after_any_step_it_resumes_the_same(tmp_path: Path, name: str) -> None:
    def train(keeper: Any) -> str:
        network, teacher = _network(name, dropout=0.3), _network(name, layers=1)
        hooks = [Distillation(teacher, TASK, 0.5)]
        config = FitConfig(epochs=2, lr=0.5, clip_grad=1.0, momentum=0.9)
        batches, validation = StreamBatches(_text(150), 3, whole=False), evaluation_streams(_text(seed=1))
        fit(network, batches, validation, config, CPU, task=TASK, hooks=hooks, keeper=keeper)
        return _digest(network)

    expected = train(None)
    watching = _Dies(_store(tmp_path / "whole"), None)
    assert train(watching) == expected and watching.saved > 14
    for after in (1, 3, watching.saved // 2 + 1, watching.saved - 2):
        folder = tmp_path / str(after)
        folder.mkdir()
        with pytest.raises(_Stopped):
            train(_Dies(_store(folder), after))
        assert train(_Dies(_store(folder), None)) == expected, f"stopped after {after}"


@pytest.mark.parametrize("forgotten", ["memory", "hooks"])
def test_what_is_remembered_belongs_to_the_state(tmp_path: Path, forgotten: str) -> None:
    """A state without it gives another result, so the test above can fail."""

    def train(keeper: Any) -> str:
        network = _network()
        hooks = [Distillation(_network(layers=1), TASK, 0.5)]
        config = FitConfig(epochs=1, lr=0.5)
        fit(
            network, StreamBatches(_text(150), 3, whole=False), None, config, CPU, task=TASK, hooks=hooks, keeper=keeper
        )
        return _digest(network)

    class _Forgetful(_Dies):
        def __init__(self) -> None:
            super().__init__(_store(tmp_path), None)
            kept = self._store.load()
            assert kept is not None
            if forgotten == "memory":
                kept["memory"] = None
            else:
                kept["hooks"]["distillation"]["memory"] = None
            self.load = lambda: kept

    with pytest.raises(_Stopped):
        train(_Dies(_store(tmp_path), 3))
    assert train(_Forgetful()) != train(None)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"tied": True, "embedding": 5}, "tied weights need an embedding as wide as the last layer, 6, not 5"),
        ({"nonlinearity": "tanh"}, "unknown argument 'nonlinearity'"),
        ({"unit": 5}, "unknown argument 'unit': did you mean 'units'"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        _network(**kwargs)


def test_published_weights_do_not_exist() -> None:
    with pytest.raises(ModelError, match="lm:lstm has no published weights"):
        build("lm:lstm", pretrained=True)


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_a_hybrid_layer_computes_what_it_says(cell: str) -> None:
    """Against the formulas, written out for one sequence, with neurons that subtract the threshold and leak by 1/3."""
    network = _network("hybrid", cell=cell, units=7, snn_fraction=0.4, tau=1.5, v_reset=None, layers=2).double()
    tokens = torch.randint(10, (9,))
    own = dict(network.named_parameters())

    def through(kind: str, x: Tensor, last: Tensor) -> Tensor:
        return own[f"{kind}.input.weight"] @ x + own[f"{kind}.input.bias"] + own[f"{kind}.recurrent.weight"] @ last

    inputs, fired = [own["encoder.weight"][token] for token in tokens], 0
    for layer in ("layers.0", "layers.1"):
        last, cells, potential = (torch.zeros(count, dtype=torch.float64) for count in (7, 4, 3))
        rows = []
        for x in inputs:
            summed, current = through(f"{layer}.dense", x, last), through(f"{layer}.spiking", x, last)
            if cell == "lstm":
                entering, forgetting, candidate, leaving = summed.split(4)
                cells = torch.sigmoid(forgetting) * cells + torch.sigmoid(entering) * torch.tanh(candidate)
                hidden = torch.sigmoid(leaving) * torch.tanh(cells)
            else:
                hidden = torch.tanh(summed)
            potential = potential - potential / 1.5 + current
            spikes = (potential >= 0.2).double()
            potential = potential - 0.2 * spikes
            fired += int(spikes.sum())
            last = torch.cat([hidden, spikes])
            rows.append(last)
        inputs = rows
    expected = torch.stack([own["decoder.weight"] @ x + own["decoder.bias"] for x in inputs])
    assert 10 < fired < 40
    torch.testing.assert_close(network(tokens[None])[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["spiking", "hybrid"])
def test_spiking_units_forget_between_calls_and_learn(name: str) -> None:
    network, tokens = _network(name), torch.randint(10, (2, 12))
    first = network(tokens)
    assert torch.equal(network(tokens), first)
    assert all(neuron.v == 0.0 for neuron in spiking_neurons(network).values())
    TASK.loss(first, tokens, 0.0).backward()
    gradients = [parameter.grad for _, parameter in network.named_parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("kwargs", [{}, {"cell": "lstm"}, {"tied": True, "layers": 3}])
def test_each_kind_of_units_shrinks_by_itself(kwargs: dict[str, Any]) -> None:
    network = _network("hybrid", units=16, **kwargs)
    result = prune(network, "l2", example_inputs=torch.randint(10, (2, 5)), ratio=0.5, min_width=1)
    assert result.report.verify_error < 1e-12
    layers = [(layer.dense, layer.spiking) for layer in result.model.layers]
    gates = 4 if "cell" in kwargs else 1
    widths = [(dense.input.out_features // gates, spiking.input.out_features) for dense, spiking in layers]
    assert all(1 <= width < 8 for pair in widths for width in pair)
    for (dense, spiking), width in zip(layers, widths, strict=True):
        assert dense.recurrent.in_features == spiking.recurrent.in_features == sum(width)
    tokens = torch.randint(10, (3, 6))
    carrier = Carrier(_streams())
    pieces = [carrier.scores(result.model, piece) for piece in tokens.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), result.model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("hybrid", {"cell": "gru"}, "unknown cell 'gru'"),
        ("hybrid", {"snn_fraction": 0.0}, "6 units with snn_fraction 0: each kind needs at least one"),
        ("hybrid", {"snn_fraction": 0.99}, "6 units with snn_fraction 0.99: each kind needs at least one"),
        ("spiking", {"snn_fraction": 0.5}, "unknown argument 'snn_fraction'"),
        ("lstm", {"tau": 2.0}, "unknown argument 'tau'"),
        ("spiking", {"tau": 0.5}, "tau has to be over 1"),
        ("spiking", {"tied": True, "embedding": 5}, "tied weights need an embedding as wide as the last layer"),
    ],
)
def test_wrong_arguments_of_spiking_networks(name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        _network(name, **kwargs)


@pytest.mark.parametrize("ref", ["lm:gru", "lm:hybrid"])
def test_coverage_knows_what_they_read(ref: str) -> None:
    *_, entry = attempt(ref)
    assert entry.status == "right" and len(entry.checks) == 4, entry.reason
