"""Recipes that leave tokens out, and that the choice matters on a trained network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Prune


@pytest.mark.parametrize("name", ["clip-tiny-cifar10", "vit-tiny-mnist"])
def test_the_recipes_are_plans(prune: Prune, name: str) -> None:
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert "token" in done.out


@pytest.mark.slow
def test_on_cluttered_digits_the_right_tokens_matter(prune: Prune, data_root: Path, tmp_path: Path) -> None:
    """The recipe stops by itself if the trained network is poor."""
    done = prune("run", REPOSITORY / "recipes" / "vit-tiny-mnist.yaml", "--output", "run")
    assert done.code == 0, done.err
    how = ("--frontier-keeps", "0.25", "--frontier-selectors", "anchor,cls,random", "--frontier", "f.png", "--json")
    found = prune("token", "run/trained.safetensors", *how)
    assert found.code == 0, found.err
    top1 = {row["selector"]: row["top1"] for row in found.json}
    assert top1["unpruned"] >= 85
    assert top1["cls"] > top1["random"] + 10
    last = json.loads((tmp_path / "run" / "comparison.json").read_text())["candidates"][-1]
    assert last["top1_drop"] < 10 and last["macs_ratio"] < 0.75
