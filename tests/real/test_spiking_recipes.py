"""The recipes of spiking networks, from training to the comparison."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

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


@pytest.mark.parametrize("name", ["spikformer-cifar10", "spikformer-cifar10-progressive"])
def test_the_paper_size_recipes_are_plans(prune: Prune, name: str) -> None:
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert "spiking:spikformer-4-384" in done.out
