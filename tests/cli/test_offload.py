"""`--offload disk`: the same checkpoint in a fraction of the memory, and one clear line where it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunecli import copying
from prunecli.checkpoint.io import read_manifest
from prunecli.cli.app import run
from prunecli.models.loading import load_file, widen
from prunecli.pipeline import offload
from tests.conftest import REPOSITORY

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder in half precision, in several shards."""
    path = tmp_path_factory.mktemp("networks") / "decoder"
    sizes = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=160, num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def _prune(network: list[str], out: Path, *options: str) -> int:
    return run(["l1", *network, "--ratio", "0.3", "--latency-rounds", "2", "-q", "-o", str(out), *options])


@pytest.mark.parametrize("kind", ["decoder", "vit", "checkpoint"])
def test_the_checkpoint_is_that_of_a_network_in_memory(kind: str, folder: Path, tmp_path: Path) -> None:
    network = [f"hf:{folder}"]
    if kind == "vit":
        timm = pytest.importorskip("timm")
        sizes = {"img_size": 32, "depth": 2, "embed_dim": 128, "num_heads": 2, "num_classes": 5}
        torch.manual_seed(0)
        weights = timm.create_model("vit_tiny_patch16_224", **sizes).half().state_dict()
        save_file(weights, tmp_path / "vit.safetensors")
        said = [word for name, value in sizes.items() for word in ("--model-kwargs", f"{name}={value}")]
        network = [str(tmp_path / "vit.safetensors"), "--arch", "timm:vit_tiny_patch16_224", *said]
    if kind == "checkpoint":
        assert _prune(network, tmp_path / "first.safetensors", "--offload", "disk") == 0
        network = [str(tmp_path / "first.safetensors")]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = []
    for where in ("none", "disk"):
        assert _prune(network, tmp_path / f"{where}.safetensors", "--offload", where) == 0
        found.append(read_manifest(tmp_path / f"{where}.safetensors"))
    expected, disk = found
    assert expected is not None and disk is not None
    assert disk.tensor_sha256 == expected.tensor_sha256
    assert (disk.edits, disk.attributes, disk.aliases) == (expected.edits, expected.attributes, expected.aliases)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.startswith("tmp")]


def test_a_large_network_takes_the_tensors_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "depth": 2, "embed_dim": 128, "num_heads": 2, "num_classes": 5}
    torch.manual_seed(0)
    weights = timm.create_model("vit_tiny_patch16_224", **sizes).half().state_dict()
    save_file(weights, tmp_path / "vit.safetensors")
    ways = []
    for large in (1 << 25, 1 << 10):
        monkeypatch.setattr(copying, "_LARGE", large)
        loaded = load_file(tmp_path / "vit.safetensors", "timm:vit_tiny_patch16_224", kwargs=sizes)
        assert {p.dtype for p in loaded.model.parameters()} == {torch.float16 if large == 1 << 10 else torch.float32}
        ways.append(widen(loaded).model.state_dict())
    assert ways[0].keys() == ways[1].keys()
    assert all(torch.equal(ways[0][name], ways[1][name]) for name in ways[0])


WRONG = {
    "epochs": (["--epochs", "1", "--data", "digits", "--schedule", "linear"], 2, "--epochs exclude each other"),
    "latency": (["--latency", "0.5"], 2, "--latency exclude each other"),
    "latency of all": (["--latency", "1"], 2, "--latency exclude each other"),
    "where": (["--offload", "cloud"], 2, "--offload"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_needs_memory_says_so(case: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, code, message = WRONG[case]
    offloaded = [] if "--offload" in options else ["--offload", "disk"]
    assert run(["l1", f"hf:{folder}", "-o", str(tmp_path / "o.safetensors"), *offloaded, *options]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_methods_that_keep_weights_in_memory_refuse(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--method", "depth", "--offload", "disk", "-o", str(tmp_path / "o.safetensors")]
    assert run(["prune", f"hf:{folder}", *asked]) == 2
    assert "--offload is for methods that remove channels" in capsys.readouterr().err


def test_files_of_torch_save_cannot_stay_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(4, 4)}, tmp_path / "w.pt")
    assert run(["l1", str(tmp_path / "w.pt"), "--offload", "disk", "-o", str(tmp_path / "o.safetensors")]) == 2
    assert "save its state dict with safetensors.torch.save_file" in capsys.readouterr().err


DAMAGE = {
    "a shard is missing": "is missing",
    "a shard is cut short": "not readable as safetensors|claims|cut short",
    "an index leads out of the folder": "outside its folder",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(damage: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "decoder"
    shutil.copytree(folder, copy)
    shard = sorted(copy.glob("*.safetensors"))[1]
    if damage == "a shard is missing":
        shard.unlink()
    elif damage == "a shard is cut short":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        index = copy / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(shard.name, f"../{shard.name}"))
    assert _prune([f"hf:{copy}"], tmp_path / "o.safetensors", "--offload", "disk") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert any(words in error for words in DAMAGE[damage].split("|")), error
    assert not (tmp_path / "o.safetensors").exists()


def test_a_damaged_byte_of_a_checkpoint_is_found(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "first.safetensors"
    assert _prune([f"hf:{folder}"], path, "--offload", "disk") == 0
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    assert _prune([str(path)], tmp_path / "o.safetensors", "--offload", "disk") == 2
    assert "is damaged" in capsys.readouterr().err


def test_too_little_memory_is_said_before_any_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_LARGE", -1)
    monkeypatch.setattr(offload, "free_memory_bytes", lambda: 1000)
    assert _prune([f"hf:{folder}"], tmp_path / "o.safetensors") == 1
    assert "--offload disk leaves weights in their files" in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()


_PEAKS = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from prunecli.copying import freed_at_once
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.offloading import put_on_disk
from prunecli.stored import Scratch

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

def network(width, depth):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers).to(torch.bfloat16)

def peak(width, depth, on_disk):
    model = network(width, depth)
    if on_disk:
        put_on_disk(model, Scratch(Path(sys.argv[1])))
    params = get_method("l1").params_class(ratio=0.3)
    with freed_at_once():
        pass
    with freed_at_once():
        before = kilobytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        result = prune_structural(model, PruneRequest(method="l1", params=params, example_inputs=torch.randn(1, width)))
        assert result.report.verify_error < 1e-12
        own = 0 if on_disk else sum(p.numel() * p.element_size() for p in model.parameters())
        return 1024 * (kilobytes("VmHWM") - before) + own

peak(64, 3, True)
print(json.dumps([peak(512, 64, on_disk) for on_disk in (True, False)]))
"""
"""Prints the memory of weights and work, on the disk and in memory, of a network of 17 million parameters."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel counts")
def test_far_less_is_resident_than_in_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, str(tmp_path)],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    disk, memory = json.loads(done.stdout)
    weights = 2 * 64 * 512 * 513
    assert disk < 2 * weights, disk / weights  # 0.3 to 1.2: some of it is what the allocator keeps, whatever the size
    assert memory > 4 * disk, (disk / weights, memory / weights)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what the kernel counts")
def test_a_billion_parameters_take_less_than_1_3_times_their_weights(tmp_path: Path) -> None:
    script = REPOSITORY / "benchmarks" / "large_models.py"
    asked = ["--sizes", "1.0", "--kinds", "decoder", "--ways", "disk", "--scratch", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(script), *asked, "-o", str(tmp_path / "r.json")],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["rows"][-1]
    assert row["code"] == 0 and row["verify_error"] < 1e-12, row
    assert row["peak"] < 1.3 * row["weights"], row
