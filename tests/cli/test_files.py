"""Files, data sets and names that a command line is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunecli.models.loading import load_reference, save
from tests.conftest import Prune


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 for CIFAR-10, untrained."""
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=10)
    path = tmp_path_factory.mktemp("models") / "colours.safetensors"
    save(path, loaded.model, loaded.manifest)
    return path


def test_eval_needs_the_test_file_alone(prune: Prune, colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "test_batch.bin").write_bytes(b"".join(bytes([label]) + bytes(3072) for label in range(10)))
    words = ("--data", "cifar10", "--data-root", "data")
    done = prune("eval", colours, *words, "--measure", "accuracy", "--json")
    assert done.code == 0 and done.json["metrics"]["top1"] == 10.0, done.err
    for others in (
        ("eval", colours, "--split", "validation"),
        ("train", colours),
        ("l1", colours),
        ("sensitivity", colours),
        ("audit", colours),
        ("compare", colours, "--methods", "l1"),
    ):
        done = prune(*others, *words)
        assert done.code == 2 and "data_batch_*.bin: not found" in done.err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_models_and_doctor_take_the_same_patterns(prune: Prune) -> None:
    listed = prune("models", "test_vi*").out.split()
    assert {"timm:test_vit", "timm:test_vit2"} <= set(listed)
    assert {"torchvision:vit_b_16", "timm:vit_base_patch16_224"} <= set(prune("models", "vit_b*").out.split())
    tried = prune("doctor", "--coverage", "vit_[bl]_32", "--max-params", "0.001", "--json")
    assert [entry["ref"] for entry in tried.json["architectures"]] == ["torchvision:vit_b_32", "torchvision:vit_l_32"]
    assert prune("models", "vit_[bl]_32").out.split() == ["torchvision:vit_b_32", "torchvision:vit_l_32"]
    assert prune("models", "cifar:resnet20").out.split() == ["cifar:resnet20"]
    assert prune("models", "timm:test_vi").out.split() == listed
    assert prune("models", "segf*").out.split() == [f"segformer:b{size}" for size in range(6)]


def test_run_takes_the_option_of_the_other_commands(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "model: {ref: cifar:resnet20}\ndata: {name: digits}\nstages: [{stage: eval, measure: [params]}]\n"
    )
    for flag, folder in (("-o", "a"), ("--out", "b"), ("--output", "c")):
        assert prune("run", "small.yaml", flag, folder).code == 0
        written = {path.name: path.read_text() for path in (tmp_path / folder).glob("*.json")}
        assert "run.json" in written and any('"command": "prune run small.yaml"' in text for text in written.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./here", "--data ./here: is an empty folder"),
        ("notes", "--data notes: nothing in this folder looks like data; what is read is named by folder: (one folder"),
        ("./there", "data set './there': no such folder"),
        ("cifar11", "unknown data set 'cifar11': did you mean 'cifar10'"),
    ],
)
def test_a_folder_alone_is_answered_with_what_it_can_be(
    prune: Prune, colours: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.md").touch()
    done = prune("eval", colours, "--data", name)
    assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1


def test_a_reference_is_compared_as_the_checkpoint_was_built(prune: Prune, colours: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    grey = load_reference("cifar:resnet20", num_classes=3, in_chans=1)
    grey.manifest.architecture.input_shape = (1, 8, 8)
    save(tmp_path / "grey.safetensors", grey.model, grey.manifest)
    done = prune("compare", "cifar:resnet20", "grey.safetensors", "--rounds", "2", "--json")
    assert done.code == 0, done.err
    assert done.json["baseline"] == "cifar:resnet20"
    (candidate,) = done.json["candidates"]
    assert candidate["params_ratio"] == 1.0 and candidate["macs_ratio"] == 1.0
    done = prune("compare", "cifar:resnet20", "grey.safetensors", "--num-classes", "10", "--rounds", "2", "--json")
    assert done.json["candidates"][0]["params_ratio"] < 1
    done = prune("compare", "cifar:resnet20", "grey.safetensors", "--rounds", "2", "--data", "digits")
    assert "cifar:resnet20 has random weights, so its accuracy means nothing" in done.err
    (tmp_path / "report.json").write_text("{}")
    for words in (("cifar:resnet20", "report.json"), ("report.json", colours)):
        done = prune("compare", *words)
        assert done.code == 2 and "report.json is neither a weights file (.safetensors" in done.err


def test_one_format_is_printed(prune: Prune) -> None:
    for first, second in (("--csv", "--json"), ("--markdown", "--json"), ("--csv", "--markdown")):
        done = prune("compare", "a.json", "b.json", first, second)
        assert done.code == 2
        assert f"{first} and {second} exclude each other" in done.out + done.err
