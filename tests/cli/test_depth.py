"""Removing blocks on the command line, from a network to its figures, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunecli.models.loading import load_file, load_reference, save
from tests.conftest import Prune

QUICK = ("--latency-rounds", "2", "--calibration-images", "64", "--batch-size", "64")


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20")
    save(tmp_path / "dense.safetensors", loaded.model, loaded.manifest)
    return tmp_path / "dense.safetensors"


def test_blocks_are_scored_removed_and_measured(prune: Prune, resnet: Path, tmp_path: Path) -> None:
    done = prune("depth", resnet, "--data", "digits", *QUICK, "--ratio", "0.3", "-o", "small.safetensors", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report["blocks"] == 7 and len(report["removed"]) == 2 and report["verify_error"] == 0
    assert report["params_after"] < report["params_before"] and report["macs_after"] < report["macs_before"]
    assert sorted(report["scores"], key=report["scores"].get)[:2] == sorted(report["removed"], key=report["scores"].get)
    shown = prune("inspect", "small.safetensors")
    assert shown.code == 0 and "depth ratio=0.3" in shown.out
    done = prune("eval", "small.safetensors", "--data", "digits", "--measure", "accuracy", "-o", "eval.json")
    assert done.code == 0, done.err
    done = prune("l1", "small.safetensors", "--ratio", "0.3", "--latency-rounds", "2", "-o", "both.safetensors")
    assert done.code == 0, done.err
    assert [step.settings["method"] for step in load_file(tmp_path / "both.safetensors").manifest.history] == [
        "depth",
        "l1",
    ]


def test_blocks_by_name_without_images(prune: Prune, resnet: Path) -> None:
    done = prune("depth", resnet, "--drop", "layer1.1", "--drop", "layer3.*", *QUICK[:2], "-o", "small.safetensors")
    assert done.code == 0, done.err
    assert "layer1.1" in done.out and "layer3.2" in done.out and "warning" not in done.err
    done = prune("depth", resnet, "--blocks", 1, *QUICK[:2], "-o", "one.safetensors")
    assert done.code == 0 and "no data set, so score cosine chooses" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ratio", "0.5", "--blocks", 1), "--ratio and --blocks both say which blocks go"),
        (("--drop", "layer9.0"), "layer9.0"),
        (("--score", "colour"), "score"),
        (("--blocks", 99), "99 blocks cannot be removed: 6 of the network's 7 can be"),
        (("--epochs", 3), "no such option"),
    ],
)
def test_what_makes_no_sense_is_one_line(prune: Prune, resnet: Path, options: tuple[object, ...], message: str) -> None:
    done = prune("depth", resnet, *options, "-o", "small.safetensors")
    assert done.code != 0 and message.lower() in done.err.lower()
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) <= 4


def test_in_a_recipe(prune: Prune, resnet: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {weights: dense.safetensors}\ndata: {name: digits, batch_size: 64}\nstages:\n"
        "  - {stage: prune, method: depth, params: {blocks: 2, score: cosine}, calibration_images: 64, "
        "latency_rounds: 2}\n  - {stage: finetune, epochs: 1}\n"
    )
    done = prune("run", recipe, "--output", "out")
    assert done.code == 0, done.err
    assert len(load_file(tmp_path / "out" / "finetuned.safetensors").manifest.blocks) == 2
