"""Whom `prune finetune` learns from, unless it is told: the network that was pruned, where that is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prunecli.checkpoint.header import manifest_of
from prunecli.models.loading import load_reference, save
from tests.conftest import REPOSITORY, Prune

FEW_DIGITS = REPOSITORY / "tests" / "faults" / "few_digits.npz"
TRAINED = ["--epochs", "1", "--batch-size", "64", "--data", f"npz:{FEW_DIGITS}"]
Finetuned = Callable[..., tuple[bytes, str]]


@pytest.fixture
def finetuned(prune: Prune, tmp_path: Path) -> Finetuned:
    """Trains and prunes a network and finetunes it with more options; returns the first weight and what was said."""
    words = ["train", "cifar:resnet20", "--epochs", "4", "--lr", "0.05", "--data", f"npz:{FEW_DIGITS}"]
    assert prune(*words, "--batch-size", "64", "-o", "dense.safetensors").code == 0
    return _finetuned(prune, tmp_path)


def _finetuned(prune: Prune, folder: Path) -> Finetuned:
    words = ["l1", "dense.safetensors", "--data", f"npz:{FEW_DIGITS}", "--latency-rounds", "2", "-o", "p.safetensors"]
    done = prune(*words)
    assert done.code == 0, done.err

    def run(*options: str, model: str = "p.safetensors") -> tuple[bytes, str]:
        done = prune("finetune", model, *TRAINED, *options, "--force", "-o", "f.safetensors")
        assert done.code == 0, done.err
        return load_file(folder / "f.safetensors")["conv1.weight"].numpy().tobytes(), done.err

    return run


def _recorded(folder: Path, setting: str = "teacher") -> object:
    return manifest_of(folder / "f.safetensors")[0].history[-1].settings[setting]


def test_the_parent_teaches_where_it_is_there(finetuned: Finetuned, tmp_path: Path) -> None:
    weights, said = finetuned()
    assert "learns from its parent dense.safetensors too (--teacher none: from labels alone)" in said
    assert _recorded(tmp_path) == "parent" and _recorded(tmp_path, "distill_temperature") == 10
    named, said = finetuned("--teacher", "parent")
    assert named == weights and "learns from" not in said
    alone, said = finetuned("--teacher", "none")
    assert alone != weights and "learns from" not in said and _recorded(tmp_path) is None
    assert _recorded(tmp_path, "distill_temperature") is None
    softer, _ = finetuned("--distill-temperature", "2")
    assert softer not in (weights, alone)
    (tmp_path / "dense.safetensors").unlink()
    without, said = finetuned()
    assert without == alone and _recorded(tmp_path) is None
    assert "learns from labels alone: dense.safetensors: the parent is not in this folder" in said


def test_a_parent_in_another_folder_has_to_be_named(
    finetuned: Finetuned, prune: Prune, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "teacher.safetensors"
    elsewhere.write_bytes((tmp_path / "dense.safetensors").read_bytes())
    words = ["l1", elsewhere, "--data", f"npz:{FEW_DIGITS}", "--latency-rounds", "2", "--force", "-o", "p.safetensors"]
    pruned = prune(*words)
    assert f"next: prune finetune p.safetensors --epochs 5 --teacher {elsewhere} --data" in pruned.err
    named, _ = finetuned("--teacher", str(elsewhere))
    alone, said = finetuned()
    assert named != alone and "teacher.safetensors: the parent is not in this folder or the checkpoint's; give" in said
    (tmp_path / "teacher.safetensors").write_bytes(b"another")
    assert "teacher.safetensors: has changed since p.safetensors was pruned from it; give --teacher" in finetuned()[1]
    again = prune(*words[:1], "dense.safetensors", *words[2:])
    assert "next: prune finetune p.safetensors --epochs 5 --data" in again.err


def test_a_network_that_was_not_pruned_has_no_teacher(finetuned: Finetuned, tmp_path: Path) -> None:
    _, said = finetuned(model="dense.safetensors")
    assert "learns from" not in said and _recorded(tmp_path) is None


def test_a_parent_that_knows_nothing_does_not_teach(prune: Prune, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(tmp_path / "dense.safetensors", loaded.model, loaded.manifest)
    finetuned = _finetuned(prune, tmp_path)
    weights, said = finetuned()
    assert "learns from labels alone: its parent dense.safetensors does not know these classes" in said
    assert _recorded(tmp_path) is None and weights == finetuned("--teacher", "none")[0]
    assert weights != finetuned("--teacher", "parent")[0]


def test_a_parent_that_knows_other_classes_does_not_teach(finetuned: Finetuned, tmp_path: Path) -> None:
    arrays = dict(np.load(FEW_DIGITS))
    arrays |= {name: 9 - arrays[name] for name in ("y_train", "y_test")}
    np.savez(tmp_path / "other.npz", **arrays)
    _, said = finetuned("--data", "npz:other.npz")
    assert "its parent dense.safetensors does not know these classes" in said
