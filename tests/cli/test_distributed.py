"""`prune run` in several processes: the same as in one, and one clear end when one of them fails."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunecli.checkpoint.durable import FAULT_VARIABLE
from prunecli.checkpoint.io import read_manifest
from prunecli.cli.joining import place, too_many
from prunecli.errors import RecipeError
from tests.conftest import REPOSITORY, Prune
from tests.processes import Processes
from tests.several import Together, run_together

RECIPE = """
version: 1
model: {ref: "cifar:resnet20"}
data: {name: digits, batch_size: 256}
stages:
  - {stage: train, epochs: 1, lr: 0.05}
"""
WHOLE = """
  - {stage: eval, measure: [accuracy, params, macs, latency], latency_rounds: 2}
  - {stage: prune, method: l1, params: {ratio: 0.3}}
  - {stage: finetune, epochs: 1, lr: 0.01}
  - {stage: eval, measure: [accuracy, params, macs]}
  - {stage: compare}
"""

DIVIDED = """
version: 1
save_every: 0
model:
  ref: timm:vit_tiny_patch16_224
  kwargs: {img_size: 8, patch_size: 4, embed_dim: 24, depth: 2, in_chans: 1}
data: {name: digits, batch_size: 256}
stages:
  - {stage: train, epochs: 1, lr: 0.05, sharding: fsdp2}
  - {stage: eval, measure: [accuracy, params]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that trains."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def _run(processes: Processes, recipe: Path, *words: object, **more: Any) -> Together:
    folder = recipe.parent
    return run_together(processes, folder, words=["run", recipe, "--out", folder / "out", *words], **more)


def test_every_stage_runs_in_two_processes(processes: Processes, recipe: Path) -> None:
    """Nothing is written or printed twice, and a network is measured as one process measures it."""
    recipe.write_text(RECIPE + WHOLE)
    both = _run(processes, recipe, env={rank: {"PRUNE_LOG_EVERY": "0.1"} for rank in (0, 1)})
    assert both.codes == [0, 0], both.err
    assert both.out[1] == both.err[1] == ""
    assert both.err[0].count("verify: finished after") == 1 and "train: " in both.err[0]
    assert both.err[0].count("epoch 1/1: loss") == 2 and "finetune" in both.out[0]
    out = recipe.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.json", "finetuned.json", "finetuned.metrics.jsonl", "finetuned.safetensors", "plan.yaml",
        "pruned.safetensors", "run.json", "trained.json", "trained.metrics.jsonl", "trained.safetensors",
    ]  # fmt: skip
    assert len((out / "trained.metrics.jsonl").read_text().splitlines()) == 1
    expected = json.loads((out / "finetuned.json").read_text())["metrics"]
    steps = [step.stage for step in read_manifest(out / "finetuned.safetensors").history]
    assert steps == ["train", "prune", "finetune"] and expected["top1"] > 15
    evaluation = recipe.with_name("eval.yaml")
    evaluation.write_text(
        f"version: 1\nmodel: {{weights: {out / 'finetuned.safetensors'}}}\n"
        "data: {name: digits, batch_size: 256}\nstages:\n  - {stage: eval, report: again.json, measure: [accuracy]}\n"
    )
    alone = recipe.parent / "alone"
    again = run_together(processes, recipe.parent, size=1, words=["run", evaluation, "--out", alone])
    assert again.codes == [0], again.err
    measured = json.loads((alone / "again.json").read_text())["metrics"]
    named = ("top1", "top5", "loss", "images", "mean_class_recall", "top1_interval")
    assert {name: measured[name] for name in named} == {name: expected[name] for name in named}


def test_a_killed_process_ends_all_and_another_number_goes_on(processes: Processes, recipe: Path) -> None:
    recipe.write_text("save_every: 0\n" + recipe.read_text())
    killed = _run(processes, recipe, env={1: {FAULT_VARIABLE: "fit:step@3"}})
    assert killed.codes[1] == -signal.SIGKILL and killed.codes[0] == 1 and killed.seconds < 60
    assert killed.err[0].count("error:") == 1 and "rank 0: lost contact with another process" in killed.err[0]
    resumed = _run(processes, recipe, "--resume", size=1)
    assert resumed.codes == [0], resumed.err
    assert "batch 2" in resumed.err[0] and "was saved with processes 2, now 1" in resumed.err[0]


@pytest.mark.slow
def test_a_divided_run_goes_on_in_one_process_without_it(processes: Processes, recipe: Path) -> None:
    """The network in the file is the one that two processes would have ended with, within rounding."""
    recipe.write_text(DIVIDED)
    killed = _run(processes, recipe, env={1: {FAULT_VARIABLE: "fit:step@3"}})
    assert killed.codes[1] == -signal.SIGKILL and killed.err[0].count("error:") == 1
    assert "divided among 2 processes; 2 blocks" in killed.err[0]
    recipe.write_text(recipe.read_text().replace("fsdp2", "none"))
    resumed = _run(processes, recipe, "--resume", size=1)
    assert resumed.codes == [0] and "batch 2" in resumed.err[0], resumed.err
    out, whole = recipe.parent / "out", recipe.parent / "whole"
    recipe.write_text(recipe.read_text().replace("none", "fsdp2"))
    both = run_together(processes, recipe.parent, words=["run", recipe, "--out", whole])
    assert both.codes == [0, 0], both.err
    first, second = (load_file(folder / "trained.safetensors") for folder in (out, whole))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-4)


def test_an_error_of_one_process_is_shown_once_with_its_rank(processes: Processes, recipe: Path) -> None:
    """Only rank 0 has the data set in its home folder."""
    home = recipe.parent / "home"
    home.mkdir()
    shutil.copy(REPOSITORY / "tests/faults/few_digits.npz", home)
    recipe.write_text(RECIPE.replace("{name: digits,", "{name: few_digits.npz, root: '~',"))
    failed = _run(processes, recipe, env={0: {"HOME": str(home)}, 1: {"HOME": "/nowhere"}})
    assert failed.codes == [2, 2] and failed.seconds < 60
    assert failed.err[1].startswith("rank 1: ") or failed.err[1].startswith("error: rank 1: "), failed.err
    assert failed.err[1].count("error:") == 1 and "error:" not in failed.err[0]


def test_a_signal_to_one_process_stops_all_after_the_step(processes: Processes, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("epochs: 1", "epochs: 50"))
    stopped = _run(processes, recipe, signals=(1, signal.SIGTERM, "epoch 1/50"))
    assert stopped.codes == [143, 143], stopped.err
    assert stopped.err[1] == "" and stopped.err[0].count("error:") == 1 and "Resume with: prune run" in stopped.err[0]


def test_other_versions_and_settings_are_named(processes: Processes, recipe: Path) -> None:
    packages = recipe.parent / "packages"
    (packages / "timm-0.1.dist-info").mkdir(parents=True)
    (packages / "timm-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.1\n")
    failed = _run(processes, recipe, paths={1: packages})
    assert failed.codes == [1, 1] and failed.err[1] == ""
    assert failed.err[0].count("error:") == 1 and "timm is 1." in failed.err[0]
    assert "on rank 0 and 0.1 on rank 1; every process needs the same" in failed.err[0]
    assert not (recipe.parent / "out").exists()


def test_another_number_of_processes_than_asked_for_is_refused(processes: Processes, recipe: Path) -> None:
    failed = _run(processes, recipe, "--nproc", 3)
    assert failed.codes == [2, 2] and failed.err[1] == ""
    assert failed.err[0] == "error: --nproc 3 asks for 3 processes, and the launcher has started 2\n"


def test_other_verbs_say_that_they_work_in_one_process(processes: Processes, recipe: Path) -> None:
    failed = run_together(processes, recipe.parent, words=["train", recipe, "-o", "x.safetensors"])
    assert failed.codes == [2, 2] and "prune train works in one process" in failed.err[0]


def test_more_processes_than_cores_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert too_many(2, "cpu") is None and too_many(8, "cuda") is None
    assert too_many(3, "auto") == "3 processes share 2 cores: they will wait for each other; use --nproc 2 or fewer"


@pytest.mark.parametrize("value", ["x", ""])
def test_a_launcher_that_says_nonsense(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="have to be numbers"):
        place()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert place() is None  # alone


def test_more_processes_than_cores_are_refused(prune: Prune, recipe: Path) -> None:
    failed = prune("run", recipe, "--nproc", "999")
    assert failed.code == 2 and "999 processes share" in failed.err and not Path("runs").exists()


def test_numbers_that_start_nothing(prune: Prune, recipe: Path) -> None:
    failed = prune("run", recipe, "--nproc", "0")
    assert failed.code == 2 and "--nproc has to be at least 1 (got 0)" in failed.err and not Path("runs").exists()


@pytest.mark.slow
def test_processes_are_started_again_from_the_newest_state(prune: Prune, recipe: Path) -> None:
    """Which kills itself at its third step each time."""
    recipe.write_text("save_every: 0\n" + recipe.read_text())
    env = {FAULT_VARIABLE: "fit:step@3"}
    out = recipe.parent / "out"
    killed = prune("run", recipe, "--out", out, "--nproc", 2, env=env)
    assert killed.code == 1 and "was killed by SIGKILL" in killed.err
    restarted = prune("run", recipe, "--out", out, "--force", "--nproc", 2, "--max-restarts", 3, env=env)
    assert restarted.code == 0, restarted.err
    assert restarted.err.count("resuming from") == 2
