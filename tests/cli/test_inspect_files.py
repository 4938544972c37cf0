"""`prune inspect --tree` and `--diff`: files alone, ours and other people's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.cli.test_commands import checkpoint  # noqa: F401 - a fixture
from tests.conftest import Prune


def test_a_tree_and_a_difference(prune: Prune, checkpoint: Path) -> None:  # noqa: F811
    done = prune("l1", checkpoint, "--ratio", "0.5", "--scope", "local", "-o", "p.safetensors", "--latency-rounds", "2")
    assert done.code == 0, done.err
    shown = prune("inspect", "p.safetensors", "--tree", "--depth", "3", "--zeros")
    rows = dict(line.split("\t", 1) for line in shown.out.splitlines())
    assert rows["layer1.0.conv1"].split("\t")[-1].startswith("8 of 16: ") and "layer1.0.conv1.weight" not in rows
    document = prune("inspect", "p.safetensors", "--tree", "--json").json
    kept = document["kept"]["layer1.0.conv1"]
    assert kept["width"] == 16 and len(kept["indices"]) == 8 and document["manifest"]["edits"]
    shown = prune("inspect", "--diff", checkpoint, "p.safetensors")
    assert shown.code == 0 and "layer1.0.conv1.weight\t16x16x3x3 float32\t8x16x3x3 float32\tshape" in shown.out
    assert "stage 1\t-\tprune" in shown.out
    same = prune("inspect", checkpoint, "--diff", checkpoint)
    assert "all tensors are the same" in same.err and "differs in" not in same.out


def test_weights_that_nobody_knows_are_shown_anyway(prune: Prune, tmp_path: Path) -> None:
    save_file({"odd.one": torch.zeros(3, 2)}, tmp_path / "x.safetensors")
    torch.save({"odd.one": torch.zeros(3, 2)}, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        done = prune("inspect", name, cwd=tmp_path)
        assert done.code == 0 and "odd.one\t3x2\tfloat32\t6" in done.out
        assert "only what the file holds is shown" in done.err and "--arch" in done.err
    done = prune("inspect", "x.pt", "--arch", "cifar:resnet20", cwd=tmp_path)
    assert done.code == 2 and done.out == ""  # whoever names an architecture wants to know that it does not fit


def test_files_that_hold_no_weights_are_refused(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    for words, message in {
        ("x.txt", "--tree"): "is a text file",
        ("gone.pt", "--tree"): "no such file",
        (".", "--tree"): ".: is a folder; --tree and --diff look into weights files",
        ("x.txt", "--diff", "gone.pt"): "gone.pt: no such file",
        ("x.txt", "--depth", "0"): "--depth has to be at least 1",
    }.items():
        done = prune("inspect", *words, cwd=tmp_path)
        assert done.code == 2 and message in done.err and done.out == "", words


def test_a_tree_of_safetensors_needs_no_torch(checkpoint: Path) -> None:  # noqa: F811
    words = [sys.executable, "-X", "importtime", "-m", "prunecli", "inspect", "--tree", str(checkpoint)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "prunecli.checkpoint.contents" in imported and not imported & {"torch", "numpy", "matplotlib"}
