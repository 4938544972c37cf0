"""Networks whose weights stay on the disk: they compute, rank and become what those in memory do."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunecli.checkpoint import io
from prunecli.checkpoint.piecewise import write_piecewise
from prunecli.inputs import call, output_tensors
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.offloading import is_offloaded, put_in_memory, put_on_disk
from prunecli.stored import Scratch
from prunecli.surgery.removal import compensate
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.widened import is_on_disk, moved_to_disk, plain, scale_positions, widened

transformers = pytest.importorskip("transformers")
DTYPES = (torch.float32, torch.bfloat16)


def decoder() -> nn.Module:
    sizes = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=160, num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    torch.manual_seed(0)
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    return model


def vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=128, num_heads=2, num_classes=5
    ).eval()
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "decoder": (decoder, lambda: {"input_ids": torch.arange(12).reshape(1, 12) * 11 % 160}),
    "vit": (vit, lambda: torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))),
}


def _bytes(model: nn.Module) -> dict[str, bytes]:
    return {
        name: plain(tensor).contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in state_tensors(model).items()
        if tensor.numel()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_updates_are_those_of_a_network_in_memory(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    make, inputs = NETWORKS[name]
    model = make().to(dtype)
    other, given = copy.deepcopy(model), inputs()
    given = given if isinstance(given, dict) else given.to(dtype)
    put_on_disk(other, Scratch(tmp_path))
    assert is_offloaded(other)
    for network in (model, other):
        output_tensors(call(network, given))[0].float().square().sum().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                assert parameter.grad is not None
                parameter.add_(parameter.grad, alpha=-0.1)
                if parameter.dim() > 1:
                    parameter[-1].mul_(2)
    assert all(is_on_disk(p) for p in other.parameters() if p.numel() >= 1 << 14), "what is computed goes there too"
    assert _bytes(other) == _bytes(model)
    put_in_memory(other)
    assert not is_offloaded(other)
    assert torch.equal(output_tensors(call(other, given))[0], output_tensors(call(model, given))[0])


def test_data_that_is_set_is_what_is_read(tmp_path: Path) -> None:
    tensor = moved_to_disk(nn.Parameter(torch.randn(4, 6)), Scratch(tmp_path))
    tensor.data = torch.arange(12.0).reshape(3, 4)
    assert is_on_disk(tensor)
    assert torch.equal(tensor + 0, torch.arange(12.0).reshape(3, 4))
    tensor.data = tensor.data.t()[1:].contiguous()
    assert torch.equal(plain(tensor), torch.arange(12.0).reshape(3, 4).t()[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_rows_that_are_scaled_are_what_multiplying_gives(where: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values, rows = torch.randn(6, 5).to(dtype), torch.tensor([4, 1])
    kept = moved_to_disk(values, Scratch(tmp_path)) if where == "disk" else widened(values, torch.float64)
    expected = values.to(kept.dtype, copy=True)
    for tensor in (kept, expected):
        tensor.index_fill_(1, torch.tensor([0]), 0)
        scale_positions(tensor, 0, rows, 0.7)
    smaller = copy.deepcopy(kept).index_select(0, torch.tensor([0, 4, 5]))
    cut = expected[[0, 4, 5]]
    assert torch.equal(plain(smaller), cut)
    kept.index_fill_(0, torch.tensor([4]), 0)
    expected[4] = 0
    scale_positions(kept, 1, torch.tensor([2]), 3.3)
    expected[:, 2] *= 3.3
    assert torch.equal(plain(kept), expected)
    kept.mul_(2)
    assert torch.equal(plain(kept), expected * 2)
    assert torch.equal(plain(smaller), cut), "what was made of it before is not changed"


def test_a_number_that_was_rounded_stays_rounded(tmp_path: Path) -> None:
    from prunecli.widened import in_file_as

    exact = moved_to_disk(torch.tensor([1.001, 70000.0]), Scratch(tmp_path))
    half = in_file_as(exact, torch.float16)
    assert torch.equal(half.double(), torch.tensor([1.001, 70000.0]).half().double())
    assert torch.equal(plain(widened(exact, torch.float64)), torch.tensor([1.001, 70000.0]).double())


def test_files_are_those_of_the_library(tmp_path: Path) -> None:
    kinds = (torch.bool, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32)
    tensors = {
        f'{name}{number % 3}.{number}é"\\': (torch.rand(3, number + 1) * 5).to(kind)
        for number, kind in enumerate((*kinds, torch.float64, torch.int64, torch.complex64))
        for name in ("b", "a", "C")
    }
    tensors |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(3.0)}
    metadata = {"k": '{"a":"é \\" \u2028\x01 \t/"}'}
    save_file(tensors, tmp_path / "library", metadata=metadata)
    scratch = Scratch(tmp_path)
    stored = {name: moved_to_disk(t, scratch) if t.dtype == torch.float32 else t for name, t in tensors.items()}
    write_piecewise(tmp_path / "piecewise", stored, metadata)
    assert (tmp_path / "piecewise").read_bytes() == (tmp_path / "library").read_bytes()


def _request(method: str, inputs: Any, **settings: Any) -> PruneRequest:
    spec = get_method(method)
    params = spec.params_class(ratio=0.3)
    batches = [inputs, inputs] if spec.needs_data or settings.get("compensation", "none") != "none" else None
    return PruneRequest(
        method=method, params=params, example_inputs=inputs, calibration=batches, recalibrate=False, **settings
    )


CASES = [
    ("decoder", "l1", {}),
    ("vit", "l2", {}),
    ("decoder", "wanda", {"compensation": "ls"}),
    pytest.param("vit", "activation", {"compensation": "bias"}, marks=pytest.mark.slow),
    pytest.param("vit", "obs", {"compensation": "reconstruct"}, marks=pytest.mark.slow),
    *(
        pytest.param(network, method, {}, marks=pytest.mark.slow)
        for network in NETWORKS
        for method in ("group-norm", "lamp", "fpgm", "fisher", "hessian", "obs-greedy", "flap", "taylor")
    ),
]


@pytest.mark.parametrize("network, method, settings", CASES)
def test_the_same_channels_go_and_the_same_weights_are_left(
    network: str, method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    make, inputs = NETWORKS[network]
    given = inputs()
    model = make()
    stored = copy.deepcopy(model)
    put_on_disk(stored, Scratch(tmp_path))
    before = _bytes(stored)
    expected = prune_structural(model, _request(method, given, **settings))
    found = prune_structural(stored, _request(method, given, **settings))
    assert found.report.edits == expected.report.edits
    assert found.report.verify_error < 1e-12
    assert _bytes(found.model) == _bytes(expected.model)
    assert all(is_on_disk(p) for p in found.model.parameters() if p.numel() >= 1 << 14)
    assert _bytes(stored) == before


def test_covariances_of_few_layers_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, inputs = NETWORKS["decoder"]
    stored = make()
    put_on_disk(stored, Scratch(tmp_path))
    trace_of = trace(stored, inputs())
    keep = {group.name: torch.arange(group.units - 1) for group in trace_of.groups}
    measured: list[list[str]] = []
    measure = compensate._measure

    def counted(dense: nn.Module, removed: dict[str, torch.Tensor], *rest: Any, **more: Any) -> Any:
        measured.append(list(removed))
        return measure(dense, removed, *rest, **more)

    monkeypatch.setattr(compensate, "_measure", counted)
    monkeypatch.setattr(compensate, "_AT_ONCE", 1e-9)
    readings = compensate.Readings(stored, trace_of.groups, keep, [inputs(), inputs()])
    assert not measured, "nothing is kept until it is needed"
    pruned = copy.deepcopy(stored)
    remove(pruned, trace_of.groups, keep)
    layers = readings.fold(pruned, "ls", intercept=False)
    assert [len(names) for names in measured] == [1] * layers, "each layer had a pass of its own"
    assert layers > 5
    assert not readings._halves


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel counts")
def test_a_file_is_not_resident_beside_what_is_read_of_it(tmp_path: Path) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile:"))

    path = tmp_path / "weights.safetensors"
    written = {f"t{number}": torch.randn(1 << 20) for number in range(8)}
    save_file(written, path)
    before = resident()
    with io._open_safetensors(path) as file, io._taking(path, file, None) as take:
        tensors = {name: take(name) for name in written}
        assert resident() - before < path.stat().st_size / 4
    assert all(torch.equal(tensors[name], tensor) for name, tensor in written.items())
    tensors["t0"].zero_()
    assert torch.equal(io.read_tensors(path)["t0"], written["t0"]), "a copy, not the file"
