"""Everything that trains, ranks and judges a network with a text tower does so by its prompts."""

from __future__ import annotations

import math
import re
from pathlib import Path

from tests.conftest import Prune
from tests.faults.processes import FEW_DIGITS

CLASSES, FEATURES = 10, 32
TRAINING = ("--epochs", 1, "--optimizer", "adamw", "--lr", "0.0002", "--batch-size", 64, "--data", FEW_DIGITS)


def losses(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"epoch 1(?:/1)?: loss (\d+\.\d+)", text)]


def test_steps_of_pruning_and_lessons_of_a_parent_are_about_prompts(prune: Prune, tiny_clip: Path) -> None:
    """The loss begins at the logarithm of the number of classes, not of features."""
    few = ("--calibration-images", 64, "--latency-rounds", 2)
    how = ("--ratio", 0.5, "--schedule", "linear", "--steps", 1, *few, *TRAINING)
    done = prune("taylor", tiny_clip, *how, "-o", "pruned.safetensors")
    assert done.code == 0, done.err
    (loss,) = losses(done.err)
    assert loss < math.log(CLASSES) + 0.5 < math.log(FEATURES)
    done = prune("finetune", "pruned.safetensors", "--teacher", tiny_clip, *TRAINING, "-o", "fine.safetensors")
    assert done.code == 0, done.err
    assert losses(done.err)


def test_sensitivity_is_judged_by_prompts(prune: Prune, tiny_clip: Path) -> None:
    """What it calls the accuracy before pruning is the one that `eval` finds."""
    how = ("--data", "digits", "--json")
    expected = prune("eval", tiny_clip, "--measure", "accuracy", "--split", "validation", *how).json["metrics"]["top1"]
    done = prune("sensitivity", tiny_clip, "--ratios", "0.5", "--images", 1000, "--method", "l1", *how)
    assert done.code == 0, done.err
    assert f"as it is: {expected:.2f} %" in done.err and expected > 0


def test_other_prompts_and_class_names_are_said_when_reports_are_compared(
    prune: Prune, tiny_clip: Path, tmp_path: Path
) -> None:
    names = [str(number) for number in range(10)]
    (tmp_path / "prompts.txt").write_text("the number {}\n")
    (tmp_path / "names.txt").write_text("\n".join(names[::-1]) + "\n")
    how = ("eval", tiny_clip, "--data", "digits", "--measure", "accuracy")
    others = {"base": (), "prompts": ("--templates", "prompts.txt"), "names": ("--class-names", "names.txt")}
    for name, words in others.items():
        done = prune(*how, *words, "-o", f"{name}.json", cwd=tmp_path)
        assert done.code == 0, done.err
    done = prune("compare", "base.json", "prompts.json", "names.json", cwd=tmp_path)
    assert done.code == 0
    assert "prompts.json: was given 1 other prompts, the baseline" in done.err and "'the number {}'" in done.err
    assert "names.json: its 10 classes have other names, or another order" in done.err
    assert "base.json:" not in done.err
