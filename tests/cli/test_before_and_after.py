"""The score before and after, in one command: the same that `prune eval` measures."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from prunecli.models.loading import load_reference, save
from tests.conftest import Prune

_L1 = ("--ratio", 0.3, "--latency-rounds", 2, "--compensate", "none", "--no-recalibrate")


def _saved(path: Path, classes: int) -> Path:
    """ResNet-20 with as many classes, for digits, that nobody has trained."""
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=classes, in_chans=1)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(path, loaded.model, loaded.manifest)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(tmp_path_factory.mktemp("models") / "dense.safetensors", 10)


def test_the_score_is_that_of_eval_and_the_checkpoint_is_the_same_without(
    prune: Prune, dense: Path, tmp_path: Path
) -> None:
    words = ("l1", dense, *_L1, "--data", "digits")
    done = prune(*words, "-o", "a.safetensors", "--json")
    assert done.code == 0, done.err
    score = done.json["score"]
    assert (score["score"], score["split"], score["images"], score["of"]) == ("top1", "test", 360, 360)
    for name, value in ((dense, score["before"]), ("a.safetensors", score["after"])):
        assert (
            prune("eval", name, "--data", "digits", "--measure", "accuracy", "--json").json["metrics"]["top1"] == value
        )
    assert score["before"] != score["after"] and score["drop"] == score["before"] - score["after"]
    low, high = score["drop_interval"]
    assert low < score["drop"] < high
    without = prune(*words, "-o", "b.safetensors", "--no-evaluate", "--json")
    assert without.json["score"] is None
    hashes = {sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.safetensors", "b.safetensors")}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("l1", *_L1),
        pytest.param(("depth", "--blocks", 1, "--no-recalibrate"), marks=pytest.mark.slow),
        ("magnitude", "--sparsity", 0.5),
    ],
)
def test_every_family_has_the_row(prune: Prune, dense: Path, words: tuple[str, ...]) -> None:
    method, *options = words
    done = prune(method, dense, *options, "--data", "digits", "--evaluation-images", 100, "--latency-rounds", 2)
    assert done.code == 0, done.err
    (row,) = [line.split("\t") for line in done.out.splitlines() if line.startswith("top-1")]
    assert row[0] == "top-1 (100 of 360 of test)"
    before, after = (float(cell.removesuffix(" %")) for cell in row[1:3])
    change, rest = row[3].split(" points ")
    assert float(change) == pytest.approx(after - before) and rest[0] == "["
    assert "energy" not in done.out and "synaptic" not in done.out


def test_labels_that_do_not_fit_are_no_obstacle_unless_the_score_is_asked_for(prune: Prune, tmp_path: Path) -> None:
    other = _saved(tmp_path / "other.safetensors", 7)
    words = ("l1", other, *_L1, "--data", "digits")
    failed = prune(*words, "--evaluate", "-o", "x.safetensors")
    why = "has 7 outputs and digits has 10 classes; give the data set it was trained on with --data"
    assert failed.code == 2 and failed.err.splitlines()[-1] == f"error: {other} {why}"
    assert not (tmp_path / "x.safetensors").exists()
    done = prune(*words, "-o", "x.safetensors", "--json")
    assert done.code == 0 and done.json["score"] is None
    assert f"the score before and after is not measured: x.safetensors {why}" in done.err
    nothing = prune("l1", other, *_L1[:4], "--evaluate", "--force")
    assert nothing.code == 2
    assert nothing.err == "error: --evaluate needs samples with labels: name a data set with --data\n"


def test_a_run_evaluates_in_its_eval_stages_unless_it_is_asked_to(prune: Prune, dense: Path, tmp_path: Path) -> None:
    recipe = (
        "version: 1\ndata: {name: digits}\nstages:\n"
        "  - {stage: prune, params: {ratio: 0.3}, compensate: none, recalibrate: false, latency_rounds: 2EVALUATE}\n"
    )
    for name, asked in (("plain", ""), ("asked", ", evaluate: true, evaluation_images: 50")):
        (tmp_path / f"{name}.yaml").write_text(recipe.replace("EVALUATE", asked))
        done = prune("run", f"{name}.yaml", "--set", f"model.weights={dense}", "-o", name, "--json")
        assert done.code == 0, done.err
        (figures,) = [stage["figures"] for stage in done.json["stages"]]
        assert ("top1_after" in figures) == bool(asked)
        recorded = json.loads((tmp_path / name / "run.json").read_text())["stages"][0]["figures"]
        assert recorded == figures


def test_energy_is_shown_where_it_was_asked_for(prune: Prune, dense: Path) -> None:
    everything = prune("eval", dense, "--data", "digits", "-o", "r.json")
    assert everything.code == 0 and "energy" not in everything.out and "footprint" not in everything.out
    assert json.loads(prune("inspect", "r.json", "--json").out)["metrics"]["energy_nj"] > 0  # for comparisons
    asked = prune("eval", dense, "--measure", "energy")
    assert asked.code == 0 and "\nenergy\t" in asked.out
