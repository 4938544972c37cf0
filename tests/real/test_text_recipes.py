"""The recipes of small networks of transformers on texts, and the script that makes the texts of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Prune

_AUTHORS = REPOSITORY / "examples" / "authors.py"


@pytest.mark.parametrize("name", ["llama-shakespeare", "bert-authors"])
def test_the_recipes_are_plans(prune: Prune, name: str) -> None:
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err


def test_passages_of_authors_do_not_give_them_away(data_root: Path, tmp_path: Path) -> None:
    texts = data_root / "text"
    words = [str(texts / "tinyshakespeare.txt"), str(texts / "war-and-peace"), str(tmp_path / "authors")]
    done = subprocess.run([sys.executable, str(_AUTHORS), *words], capture_output=True, text=True, check=True)
    assert "train: " in done.stdout
    parts = {}
    for part in ("train", "valid", "test"):
        rows = [json.loads(line) for line in (tmp_path / "authors" / f"{part}.jsonl").read_text().splitlines()]
        labels = [row["label"] for row in rows]
        assert labels.count("Shakespeare") == labels.count("Tolstoy") > 500
        assert all(len(row["text"].split()) == 16 and row["text"] == row["text"].lower() for row in rows)
        assert not any(char in row["text"] for row in rows for char in '\n:,.;"')
        parts[part] = {row["text"] for row in rows}
    assert not parts["train"] & parts["test"] and not parts["valid"] & parts["test"]


@pytest.mark.slow
def test_a_llama_at_half_its_width_is_finetuned_back(prune: Prune, data_root: Path, tmp_path: Path) -> None:
    recipe = REPOSITORY / "recipes" / "llama-shakespeare.yaml"
    done = prune("run", recipe, "--output", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    pruned, finetuned = json.loads((tmp_path / "run" / "comparison.json").read_text())["candidates"]
    assert finetuned["bits_per_character_rise"] < 0.15 < pruned["bits_per_character_rise"]
    assert finetuned["macs_ratio"] < 0.4


@pytest.mark.slow
def test_a_bert_at_half_its_width_still_knows_its_authors(prune: Prune, data_root: Path, tmp_path: Path) -> None:
    texts = data_root / "text"
    words = [str(texts / "tinyshakespeare.txt"), str(texts / "war-and-peace"), str(tmp_path / "authors")]
    subprocess.run([sys.executable, str(_AUTHORS), *words], capture_output=True, check=True)
    done = prune("run", REPOSITORY / "recipes" / "bert-authors.yaml", "--output", "run", cwd=tmp_path)
    assert done.code == 0, done.err
    finetuned = json.loads((tmp_path / "run" / "comparison.json").read_text())["candidates"][-1]
    assert finetuned["top1_drop"] < 3 and finetuned["macs_ratio"] < 0.4
