"""The main path on published weights and real images (PRUNE_DATA)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.data.catalog import load_data
from prunecli.models.loading import load_file
from tests.conftest import Prune


def _weights(data_root: Path, name: str) -> Path:
    return next((data_root / "weights").glob(f"{name}*"))


@pytest.mark.slow
def test_published_resnet20_evaluates_prunes_and_compares(prune: Prune, data_root: Path) -> None:
    weights = _weights(data_root, "resnet20")
    common = ("--data", "cifar10", "--data-root", data_root, "--batch-size", "250")
    done = prune("eval", weights, *common, "-o", "baseline.json", "--json")
    assert done.code == 0, done.err
    # 91.73 % on all 10,000 test images; these are 5,000 of them (standard error 0.4).
    assert done.json["metrics"]["top1"] == pytest.approx(91.73, abs=1.2)
    assert done.json["metrics"]["images"] == 5000
    done = prune("l1", weights, "--ratio", "0.3", *common, "-o", "pruned.safetensors")
    assert done.code == 0 and "recognised as cifar:resnet20" in done.err, done.err
    done = prune("eval", "pruned.safetensors", *common, "-o", "pruned.json", "--json")
    assert done.json["metrics"]["top1"] > 70
    gate = "top1_drop > 20 or params_ratio > 0.8"
    done = prune("compare", "baseline.json", "pruned.json", "--fail-if", gate)
    assert done.code == 0, done.err


def test_resnet56_is_recognised_and_pruned_through_the_interface(data_root: Path, tmp_path: Path) -> None:
    loaded = load_file(_weights(data_root, "resnet56"))
    assert loaded.manifest.architecture.ref == "cifar:resnet56"
    result = prunecli.prune(loaded.model, "l1", ratio=0.5, scope="local", example_inputs=torch.randn(1, 3, 32, 32))
    assert result.report.params_after / result.report.params_before == pytest.approx(0.502, abs=0.001)
    assert result.manifest.architecture.ref == "cifar:resnet56"
    result.save(tmp_path / "x.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(prunecli.load(tmp_path / "x.safetensors")(images), result.model(images))


def test_weights_of_another_depth_are_refused(prune: Prune, data_root: Path) -> None:
    done = prune("l1", _weights(data_root, "resnet20"), "--arch", "cifar:resnet56")
    assert done.code == 2 and "do not fit cifar:resnet56" in done.err and "nearest" in done.err


def test_mobilenet_on_the_imagenet_sample(prune: Prune, data_root: Path) -> None:
    done = prune(
        "eval", _weights(data_root, "mobilenet"), "--arch", "torchvision:mobilenet_v2",
        "--data", f"folder:{data_root / 'imagenet_sample'}", "--measure", "accuracy", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    # 80 % on 1,000 images with torchvision's own padding and another normalisation; here 167 images.
    assert done.json["metrics"]["images"] == 167 and done.json["metrics"]["top1"] > 60


def test_mnist_as_distributed(data_root: Path) -> None:
    data = load_data("mnist", data_root)
    assert len(data.training_split().labels) == 60000 and len(data.test.labels) == 10000
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_cifar_subset_as_distributed(data_root: Path) -> None:
    data = load_data("cifar10", data_root)
    assert len(data.training_split().labels) == 20000 and len(data.test.labels) == 5000
    assert data.class_names[0] == "airplane"
