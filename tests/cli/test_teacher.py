"""Whom `prune finetune` learns from, unless it is told: the network that was pruned, where that is better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
    """Prunes a network and finetunes it with some more options; returns the first weight and what was said."""
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(tmp_path / "dense.safetensors", loaded.model, loaded.manifest)
    words = ["l1", "dense.safetensors", "--data", f"npz:{FEW_DIGITS}", "--latency-rounds", "2", "-o", "p.safetensors"]
    done = prune(*words)
    assert done.code == 0, done.err

    def run(*options: str, model: str = "p.safetensors") -> tuple[bytes, str]:
        done = prune("finetune", model, *TRAINED, *options, "--force", "-o", "f.safetensors")
        assert done.code == 0, done.err
        return load_file(tmp_path / "f.safetensors")["conv1.weight"].numpy().tobytes(), done.err

    return run


def _recorded(folder: Path) -> object:
    return manifest_of(folder / "f.safetensors")[0].history[-1].settings["teacher"]


def test_the_parent_teaches_where_it_is_there(finetuned: Finetuned, tmp_path: Path) -> None:
    weights, said = finetuned()
    assert "learns from its parent dense.safetensors too (--teacher none: from labels alone)" in said
    assert _recorded(tmp_path) == "parent"
    named, said = finetuned("--teacher", "parent")
    assert named == weights and "learns from" not in said
    alone, said = finetuned("--teacher", "none")
    assert alone != weights and "learns from" not in said and _recorded(tmp_path) is None
    softer, _ = finetuned("--distill-temperature", "2")
    assert softer not in (weights, alone)
    (tmp_path / "dense.safetensors").unlink()
    without, said = finetuned()
    assert without == alone and _recorded(tmp_path) is None
    assert "learns from labels alone: dense.safetensors: the parent is not in this folder" in said


def test_a_network_that_was_not_pruned_has_no_teacher(finetuned: Finetuned, tmp_path: Path) -> None:
    _, said = finetuned(model="dense.safetensors")
    assert "learns from" not in said and _recorded(tmp_path) is None
