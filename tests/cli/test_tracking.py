"""`--track`: curves of real runs in trackers' own files, and a command line that stays as it is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunecli.checkpoint.header import read_manifest
from tests.conftest import Prune
from tests.faults.processes import FEW_DIGITS
from tests.processes import Processes, Sent
from tests.unit.test_tracking import available

_TRAIN = ["train", "cifar:resnet20", "--data", "digits", "--lr", "0.05", "--batch-size", "256"]


def _points(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def _trackio(folder: Path) -> list[dict[str, Any]]:
    """Runs in a trackio database; trackio looks for it when it is imported."""
    code = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage; runs = trackio.Api().runs('prune'); "
        "print(json.dumps([{'config': r.config, 'rows': SQLiteStorage.get_logs('prune', r.name)} for r in runs]))"
    )
    env = {"TRACKIO_DIR": str(folder), "PATH": ""}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    runs: list[dict[str, Any]] = json.loads(ended.stdout)
    return runs


def test_track_alone_means_trackio(processes: Processes, tmp_path: Path) -> None:
    available("trackio")
    env = {"TRACKIO_DIR": str(tmp_path / "kept")}
    words = [*_TRAIN, "--epochs", "2", "--track", "-o", "dense.safetensors", "--json"]
    ended = processes.run(words, cwd=tmp_path, env=env)
    assert ended.code == 0, ended.err
    epochs = json.loads(ended.out)["epochs"]
    (run,) = _trackio(tmp_path / "kept")
    assert [(row["step"], row["train_loss"]) for row in run["rows"]] == [(e["epoch"], e["loss"]) for e in epochs]
    assert [row["validation_top1"] for row in run["rows"]] == [e["validation"]["top1"] for e in epochs]
    assert run["config"]["train.epochs"] == 2 and run["config"]["data.name"] == "digits"
    manifest = read_manifest(tmp_path / "dense.safetensors")
    assert manifest is not None
    assert manifest.history[-1].command == " ".join(["prune", *_TRAIN, "--epochs", "2"])
    assert "track" not in json.dumps(manifest.history[-1].settings), "it changes nothing about the network"


def test_a_run_that_was_stopped_goes_on_in_the_same_curves(processes: Processes, tmp_path: Path) -> None:
    words = [*_TRAIN, "--epochs", "4", "--track", "tensorboard", "-o", "dense.safetensors"]
    stopped = processes.run(words, cwd=tmp_path, signals=[Sent(signal.SIGINT, text="epoch 2/4")])
    assert stopped.code == 130, stopped.err
    assert (tmp_path / "dense.safetensors.state" / "trackers.json").is_file()
    ended = processes.run([*words, "--resume"], cwd=tmp_path)
    assert ended.code == 0, ended.err
    points = _points(tmp_path / "tensorboard" / "dense", "train_loss")
    rows = [json.loads(line) for line in (tmp_path / "dense.metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in points] == [1, 2, 3, 4] == [row["epoch"] for row in rows]
    assert [value for _, value in points] == pytest.approx([row["train_loss"] for row in rows])
    assert not (tmp_path / "dense.safetensors.state").exists()


def test_every_training_stage_of_a_recipe_has_its_curves(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {ref: 'cifar:resnet20'}\ndata: {name: digits, batch_size: 256}\ntrack: [tensorboard]\n"
        "stages:\n  - {stage: train, epochs: 1}\n  - {stage: prune, method: l1, params: {ratio: 0.3}}\n"
        "  - {stage: finetune, epochs: 2}\n"
    )
    ended = processes.run(["run", "recipe.yaml", "--out", "out"], cwd=tmp_path)
    assert ended.code == 0, ended.err
    for name, epochs in (("trained", 1), ("finetuned", 2)):
        assert [step for step, _ in _points(tmp_path / "out" / "tensorboard" / name, "lr")] == [*range(1, epochs + 1)]


def test_a_server_that_does_not_answer_costs_no_training(processes: Processes, tmp_path: Path) -> None:
    available("mlflow")
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    words = [*_TRAIN, "--epochs", "2", "--track", "mlflow,tensorboard", "-o", "dense.safetensors", "--json"]
    ended = processes.run(words, cwd=tmp_path, env=env)
    assert ended.code == 0 and len(json.loads(ended.out)["epochs"]) == 2
    assert [line for line in ended.err.splitlines() if "tracking failed" in line and "mlflow" in line]
    assert ended.err.count("tracking failed") == 1 and "Traceback" not in ended.err
    assert len(_points(tmp_path / "tensorboard" / "dense", "lr")) == 2


def test_unknown_trackers_are_refused_before_training(processes: Processes, tmp_path: Path) -> None:
    ended = processes.run([*_TRAIN, "--track", "tensorbord", "-o", "dense.safetensors"], cwd=tmp_path)
    assert ended.code == 2 and "did you mean 'tensorboard'" in ended.err and "epoch" not in ended.err
    assert list(tmp_path.glob("[!.]*")) == []
    (tmp_path / "recipe.yaml").write_text("model: {ref: 'cifar:resnet20'}\ntrack: [x]\nstages: [{stage: train}]\n")
    ended = processes.run(["run", "recipe.yaml"], cwd=tmp_path)
    assert ended.code == 2 and "unknown tracker 'x'" in ended.err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (("l1", "--ratio", "0.4", "--schedule", "linear", "--steps", "2", "--epochs", "1", "--latency-rounds", "2"), 2),
        (("magnitude", "--sparsity", "0.5", "--schedule", "linear", "--steps", "2", "--epochs", "1"), 2),
        (("sca", "--connectivity", "0.7", "--epochs", "2", "--finetune-epochs", "1", "--latency-rounds", "2"), 3),
    ],
    ids=["in steps", "weights in steps", "while training"],
)
def test_training_that_belongs_to_pruning_has_a_log_too(
    prune: Prune, tmp_path: Path, words: tuple[str, ...], epochs: int
) -> None:
    """Its epochs count through all steps, and finetuning in the same stage."""
    method, *settings = words
    done = prune(method, "cifar:resnet20", "--data", FEW_DIGITS, *settings, "-o", "p.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "p.metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert all(row["train_loss"] > 0 and row["seconds"] > 0 for row in rows)
    assert ("tables" in rows[0]) == (method == "sca")


def test_pruning_without_training_leaves_no_log(prune: Prune, tmp_path: Path) -> None:
    done = prune("l1", "cifar:resnet20", "--ratio", "0.4", "-o", "p.safetensors", "--latency-rounds", "2", cwd=tmp_path)
    assert done.code == 0 and not (tmp_path / "p.metrics.jsonl").exists()
