"""Tensors that widen when they are read: they compute what a copy in float64 computes, and leave the original alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from prunecli import copying
from prunecli.copying import converted, copied, sharing_parameters
from prunecli.errors import VerificationError
from prunecli.inputs import call, cast_inputs, output_tensors
from prunecli.models.catalog import build
from prunecli.surgery.proof.masked import run_masked
from prunecli.surgery.proof.verify import TOLERANCE, verify
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.trial import half_of
from prunecli.widened import Widened, plain, widened


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats small networks as large ones, and each of their parameters as worth widening."""
    monkeypatch.setattr(copying, "_LARGE", -1)
    monkeypatch.setattr(copying, "_WORTH_WIDENING", 1)


class _Borrowing(nn.Module):
    """Computes with another module's weight, and writes to a view of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.second.weight[0].mul_(0.5)
            self.second.weight.data[:, 1].clamp_(min=0)
        hidden = torch.relu(x @ self.first.weight.t() + self.first.bias)
        head: Tensor = self.head(self.second(hidden) + hidden @ self.first.weight)
        return head


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(11, 8), nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embedding(tokens))[0])
        return logits


def _normed() -> nn.Module:
    old = nn.utils.weight_norm(nn.Linear(6, 8))
    return nn.Sequential(old, nn.ReLU(), parametrizations.weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3))


def _attention() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def _transformer(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        library = pytest.importorskip("transformers")
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        if kind == "llama":
            config = library.LlamaConfig(vocab_size=11, num_key_value_heads=1, tie_word_embeddings=True, **sizes)
            return library.LlamaForCausalLM(config)  # type: ignore[no-any-return]
        return library.BertForMaskedLM(library.BertConfig(vocab_size=11, **sizes))  # type: ignore[no-any-return]

    return make


TOKENS, NUMBERS = torch.arange(10).reshape(2, 5), torch.linspace(-2, 2, 12).reshape(2, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet": (lambda: build("cifar:resnet20", pretrained=False), torch.randn(2, 3, 16, 16)),
    "lstm, tied": (_Recurrent, TOKENS),
    "weight normalisation": (_normed, NUMBERS),
    "attention": (_attention, torch.linspace(-1, 1, 48).reshape(2, 3, 8)),
    "another module's weight": (_Borrowing, NUMBERS),
    "llama, tied": (_transformer("llama"), TOKENS),
    "bert": (_transformer("bert"), TOKENS),
}


def _bytes(model: nn.Module) -> dict[str, bytes]:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().flatten().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def _made(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    return make().to(dtype).eval(), cast_inputs(inputs, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_a_whole_copy_computes(
    name: str, dtype: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = _made(name, dtype)
    before = _bytes(model)
    whole = converted(model, torch.float64).train(training)
    monkeypatch.setattr(copying, "_LARGE", -1)
    monkeypatch.setattr(copying, "_WORTH_WIDENING", 1)
    piecewise = converted(model, torch.float64).train(training)
    assert any(isinstance(parameter, Widened) for parameter in piecewise.parameters())
    with torch.no_grad():
        outputs = []
        for network in (whole, sharing_parameters(piecewise), copied(piecewise)):
            torch.manual_seed(1)
            outputs.append([tensor for _ in range(2) for tensor in output_tensors(call(network, inputs))])
    assert outputs[0][0].dtype == torch.float64
    for others in outputs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outputs[0], others, strict=True))
    assert _bytes(model) == before


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("everything_is_large")
def test_masks_and_proof_leave_the_weights_alone(name: str) -> None:
    model, inputs = _made(name)
    if name == "another module's weight":
        pytest.skip("writes to its weights in every pass, so it is not traced")
    model = in_form(model, inputs) if "lstm" in name else model
    before = _bytes(model)
    traced = trace(model, inputs)
    keep = half_of(traced.groups)
    assert keep
    pruned = copied(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, inputs) <= TOLERANCE / 1e3
    probe = converted(model, traced.dtype).eval()
    assert traced.followed is not None
    run_masked(probe, traced.followed, traced.groups, keep, inputs)
    group = traced.groups[0]
    member = group.members[0]
    silent = plain(getattr(probe.get_submodule(member.module), member.tensor)).movedim(member.dim, 0)
    gone = sorted(set(range(group.units)) - set(keep[group.name].tolist()))
    assert not silent[member.index[gone].flatten()].any()
    assert _bytes(model) == before


@pytest.mark.usefixtures("everything_is_large")
def test_swapped_channels_are_found() -> None:
    model, inputs = _made("resnet", torch.bfloat16)
    traced = trace(model, inputs)
    keep = half_of(traced.groups)
    pruned = copied(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, inputs) <= TOLERANCE
    name = next(member.name for group in traced.groups for member in group.members if member.role == "consumer")
    weight = pruned.get_parameter(name)
    weight.data = weight.data[:, [1, 0, *range(2, weight.shape[1])]].clone()
    with pytest.raises(VerificationError, match="does not consist of"):
        verify(model, pruned, traced, keep, inputs)


@pytest.mark.usefixtures("everything_is_large")
def test_what_raises_leaves_the_weights_alone() -> None:
    model = _Borrowing()
    before = _bytes(model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="shape"):
        converted(model, torch.float64)(torch.randn(2, 5, dtype=torch.float64))
    assert _bytes(model) == before


def test_views_and_their_writes_are_those_of_a_tensor() -> None:
    stored = nn.Parameter(torch.randn(6, 4).bfloat16())
    before = stored.detach().clone()
    one, right = widened(stored, torch.float64), stored.detach().double()
    assert isinstance(one, nn.Parameter)
    assert one.dtype == torch.float64
    with torch.no_grad():
        one.detach().index_fill_(1, torch.tensor([0]), 0)
        right[:, 0] = 0
        picked = one.index_select(0, torch.tensor([4, 1]))
        one.t()[2].mul_(3)
        right[:, 2] *= 3
        one.split(2)[1].add_(1)
        right[2:4] += 1
        assert torch.equal(plain(one), right)
        assert torch.equal(plain(picked), before.double().index_fill(1, torch.tensor([0]), 0)[[4, 1]])
        torch.add(right, 1, out=one)
        assert torch.equal(plain(one), right + 1)
    assert torch.equal(stored, before)


@pytest.mark.usefixtures("everything_is_large")
def test_large_networks_stay_in_half_precision(tmp_path: Path) -> None:
    from prunecli.cli.app import run
    from prunecli.models.loading import load_file, load_reference, save, widen

    model: Any = _made("llama, tied", torch.bfloat16)[0]
    model.save_pretrained(tmp_path / "llama")
    loaded, out = load_reference(f"hf:{tmp_path / 'llama'}"), tmp_path / "out.safetensors"
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}
    asked = ["--ratio", "0.5", "--bptt", "8", "--latency-rounds", "2", "-o", str(out)]
    assert run(["l1", f"hf:{tmp_path / 'llama'}", *asked]) == 0
    pruned = load_file(out)
    assert {parameter.dtype for parameter in pruned.model.parameters()} == {torch.bfloat16}
    before = _bytes(pruned.model)
    assert {parameter.dtype for parameter in widen(pruned).model.parameters()} == {torch.float32}
    save(tmp_path / "again.safetensors", pruned.model, pruned.manifest)
    again = load_file(tmp_path / "again.safetensors")
    assert _bytes(again.model) == before
