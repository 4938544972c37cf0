"""Segmentation on real CamVid frames (PRUNE_DATA)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prunecli.data.catalog import load_data
from prunecli.data.masks import VOID, MaskSplit
from tests.conftest import REPOSITORY, Prune


@pytest.fixture
def camvid(data_root: Path) -> Path:
    if not (data_root / "camvid").is_dir():
        pytest.skip("no camvid in PRUNE_DATA")
    return data_root


def test_camvid_as_distributed(camvid: Path) -> None:
    data = load_data("segmentation:camvid", camvid)
    assert (data.num_classes, data.image_size, data.class_names[3]) == (11, (360, 480), "road")
    assert isinstance(data.train, MaskSplit) and isinstance(data.test, MaskSplit)
    assert (len(data.train.images), len(data.test.images)) == (62, 34)
    counts = sum(np.bincount(data.test.mask(i).ravel(), minlength=256) for i in range(34))
    assert set(np.flatnonzero(counts)) == {*range(11), VOID}
    # Roads and buildings fill half of a street scene; a shifted table of classes would say something else.
    shares = counts / counts[:11].sum()
    assert shares[3] == pytest.approx(0.294, abs=0.01) and shares[1] == pytest.approx(0.264, abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("transformers_ready")
def test_the_recipes_training_learns_more_than_the_commonest_class(camvid: Path, prune: Prune, tmp_path: Path) -> None:
    recipe = REPOSITORY / "recipes" / "segformer-camvid.yaml"
    common = ("--data-root", camvid, "--image-size", "64x96", "--threads", "1")
    few = ("--epochs", "3", "--lr", "3e-3", "--warmup-epochs", "0")
    done = prune("train", recipe, *common, *few, "-o", "trained.safetensors")
    assert done.code == 0, done.err
    done = prune("eval", "trained.safetensors", *common, "--measure", "accuracy", "-o", "report.json")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    # "Everything is road" scores 29 % of the pixels and 2.7 % mIoU.
    assert metrics["images"] == 34 and metrics["pixel_accuracy"] > 45 and metrics["miou"] > 10
    assert metrics["class_iou"]["road"] > 40
    quick = ("--calibration-images", "32", "--latency-rounds", "2")
    done = prune("l1", "trained.safetensors", *common, "--ratio", "0.5", *quick, "-o", "pruned.safetensors", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["params_after"] < 0.35 * report["params_before"] and report["verify_error"] < 1e-9
    done = prune(
        "finetune", "pruned.safetensors", *common, "--epochs", "1", "--teacher", "parent", "-o", "f.safetensors"
    )
    assert done.code == 0, done.err
    done = prune("eval", "f.safetensors", *common, "--measure", "accuracy", "-o", "finetuned.json")
    assert done.code == 0, done.err
    after = json.loads((tmp_path / "finetuned.json").read_text())["metrics"]
    assert after["miou"] > 8 and after["pixel_accuracy"] > 40
