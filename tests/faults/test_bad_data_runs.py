"""Whole commands on folders with bad images: what stops, what goes on, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.processes import Processes

_WORDS = "train cifar:resnet20 --data folder:images --image-size 16 --batch-size 8 --epochs 2 -o x.safetensors".split()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise, with four files of the training images and one to evaluate on that are none."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 6)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for place in range(count):
                pixels = chance.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{place}.png")
    whole = (tmp_path / "images" / "train" / "cat" / "0.png").read_bytes()
    bad = {
        "cat/0": whole[:100],
        "cat/1": b"",
        "dog/3": b"<html>",
        "dog/4": b"version https://git-lfs.github.com/spec/v1",
    }
    for name, content in bad.items():
        (tmp_path / "images" / "train" / f"{name}.png").write_bytes(content)
    (tmp_path / "images" / "val" / "dog" / "5.png").write_bytes(b"no picture")
    return tmp_path


def test_bad_images_stop_a_run_by_name(processes: Processes, images: Path) -> None:
    done = processes.run(_WORDS, images)
    assert done.code == 2 and done.err.splitlines()[-1].startswith("error: images/train/")
    assert "not a readable image" in done.err and "--skip-bad 1" in done.err
    assert not list(images.glob("*.safetensors"))


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_left_out_and_counted(processes: Processes, images: Path, workers: int) -> None:
    done = processes.run([*_WORDS, "--skip-bad", "4", "--workers", workers], images)
    assert done.code == 0, done.err
    assert "warning: unreadable images left out: 4 (images/train/" in done.err and "and 1 more" in done.err
    too_many = processes.run([*_WORDS, "--skip-bad", "3", "--force"], images)
    assert too_many.code == 2 and "the 4th of them where --skip-bad allows 3" in too_many.err
    words = ["eval", "x.safetensors", "--data", "folder:images", "--measure", "accuracy", "-o", "r.json"]
    assert processes.run(words, images).code == 2
    done = processes.run([*words, "--skip-bad", "1"], images)
    assert done.code == 0 and "unreadable images left out: 1" in done.err, done.err
    data = json.loads((images / "r.json").read_text())["data"]
    assert data["images"] == 11 and data["skipped"] == 1


def test_what_was_left_out_before_a_kill_still_counts(processes: Processes, images: Path) -> None:
    words = [*_WORDS, "--skip-bad", "4", "--save-every", "0"]
    assert processes.run(words, images, fault="fit:step@9").code == -9  # in the second epoch, all four were met
    resumed = processes.run([*words, "--resume"], images)
    assert resumed.code == 0 and "unreadable images left out: 4" in resumed.err, resumed.err


def test_a_batch_that_memory_does_not_suffice_for_is_one_line(processes: Processes, images: Path) -> None:
    words = [*_WORDS, "--skip-bad", "4", "--image-size", "9000"]
    done = processes.run(words, images, memory_limit=3 << 30)
    assert done.code == 1, done.err
    assert "out of memory" in done.err and "--batch-size" in done.err and len(done.err.splitlines()) <= 2
