"""The recipes of spiking networks, from training to the comparison."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, Prune


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spikformer-digits", "spikformer-digits-progressive", "spiking-vgg9-mnist"])
def test_a_recipe_runs_under_ten_minutes_and_its_base_is_good(
    prune: Prune, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    if "mnist" in name:
        request.getfixturevalue("data_root")  # skips without PRUNE_DATA
    start = time.monotonic()
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--output", "run")
    assert done.code == 0, done.err
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others' programs are not the recipe's time
    assert time.monotonic() - start < 600 * busy
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text())
    last = comparison["candidates"][-1]
    assert last["top1_drop"] < 6 and last["synops_ratio"] < 0.8 and last["params_ratio"] < 0.75


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("spikformer-cifar10", "spikformer-4-384"),
        ("spikformer-cifar10-progressive", "spikformer-4-384"),
        ("sca-vgg9-cifar10", "vgg9"),
        ("unstructured-6conv2fc-cifar10", "6conv2fc"),
    ],
)
def test_the_paper_size_recipes_are_plans(prune: Prune, name: str, network: str) -> None:
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert f"spiking:{network}" in done.out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "left"), [("sca-vgg9-mnist", 0.75), ("unstructured-vgg9-mnist", 1.0)])
def test_a_recipe_that_prunes_while_it_trains_runs_under_ten_minutes(
    prune: Prune, tmp_path: Path, data_root: Path, name: str, left: float
) -> None:
    start = time.monotonic()
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--output", "run")
    assert done.code == 0, done.err
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - start < 600 * busy
    last = json.loads((tmp_path / "run" / "comparison.json").read_text())["candidates"][-1]
    assert last["top1_drop"] < 8 and last["synops_ratio"] < 0.6 and last["params_ratio"] <= left


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sca-vgg9-cifar10", "unstructured-6conv2fc-cifar10"])
def test_a_recipe_at_paper_size_runs_for_a_few_steps(prune: Prune, tmp_path: Path, few_cifar: Path, name: str) -> None:
    short = ("--set", f"data.name=npz:{few_cifar}", "--set", "data.workers=0", "--set", "stages.0.epochs=1")
    more = (
        "--set",
        "stages.2.epochs=1",
        "--set",
        "stages.2.params.finetune_epochs=1",
        "--set",
        "stages.2.latency_rounds=2",
    )
    gate = ("--set", "stages.1.require=top1 >= 0", "--set", "data.batch_size=8")
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", *short, *more, *gate, "--output", "run")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "comparison.json").is_file()


@pytest.fixture
def few_cifar(tmp_path: Path) -> Path:
    """24 images of the size of CIFAR-10's, in its ten classes."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(48) % 10
    path = tmp_path / "few.npz"
    np.savez(path, x_train=images[:24], y_train=labels[:24], x_test=images[24:], y_test=labels[24:])
    return path
