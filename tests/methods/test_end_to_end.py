"""Every method on a tiny real network, from training to a verified smaller one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunecli
from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import DataSet
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError
from prunecli.methods.index import METHODS
from prunecli.models.catalog import build

CPU = torch.device("cpu")
TASK = Classification.with_classes(10)


@pytest.fixture(scope="module")
def digits() -> tuple[DataSet, Preprocessing]:
    data = load_data("digits")
    return data, Preprocessing((1, 8, 8), data.mean, data.std)


@pytest.fixture(scope="module")
def trained(digits: tuple[DataSet, Preprocessing]) -> nn.Module:
    data, preprocessing = digits
    torch.manual_seed(0)
    model = build("cifar:resnet20", in_chans=1)
    augmentation = Augmentation(flip=False)
    batches = training_batches(data.training_split(), preprocessing, augmentation, 64, seed=0)
    fit(model, batches, None, FitConfig(epochs=6, lr=0.05), CPU, task=TASK)
    return model


def _top1(model: nn.Module, digits: tuple[DataSet, Preprocessing]) -> float:
    return evaluate(model, evaluation_batches(digits[0].test, digits[1], 128), CPU).top1


_OTHER_NETWORKS = ("spike", "hybrid")
"""Methods for networks with spiking units."""


_BY_LAYER = ("l1", "taylor", "obd")
"""Weights, gradients, curvature: what a layer of its own width is chosen by for every method."""
_LONG = ("hap", "obs-greedy")
"""Methods that take longest; others that share their scores stay."""


def _methods_and_scopes() -> Iterator[Any]:
    for name in METHODS.built_in:
        if METHODS.load(name).family == "structural" and name not in _OTHER_NETWORKS:
            yield pytest.param(name, "global", marks=pytest.mark.slow if name in _LONG else ())
            yield pytest.param(name, "local", marks=() if name in _BY_LAYER else pytest.mark.slow)


@pytest.mark.parametrize(("method", "scope"), _methods_and_scopes())
def test_prune_verify_save_restore(
    trained: nn.Module, digits: tuple[DataSet, Preprocessing], tmp_path: Path, method: str, scope: str
) -> None:
    data, preprocessing = digits
    before = [parameter.clone() for parameter in trained.parameters()]
    calibration = CalibrationBatches(data.training_split(), preprocessing, 64, 32, seed=0)
    image = torch.randn(1, 1, 8, 8)
    few = {"max_probes": 16} if hasattr(METHODS.load(method).params_class(), "max_probes") else {}
    result = prunecli.prune(
        trained, method, ratio=0.5, scope=scope, example_inputs=image, data=calibration, recalibrate=True, **few
    )
    assert result.report.verify_error < 1e-9
    assert result.report.achieved == pytest.approx(0.5, abs=0.06)
    assert result.report.macs_after.total < 0.7 * result.report.macs_before.total
    assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))
    result.save(tmp_path / "x.safetensors")
    restored = prunecli.load(tmp_path / "x.safetensors")
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(restored(images), result.model.eval()(images))
    for edit in result.report.edits:
        assert len(edit.keep_indices) == edit.width_after < edit.width_before


def test_finetuning_brings_the_accuracy_back(trained: nn.Module, digits: tuple[DataSet, Preprocessing]) -> None:
    data, preprocessing = digits
    dense = _top1(trained, digits)
    assert dense > 90
    result = prunecli.prune(trained, "l1", ratio=0.5, example_inputs=torch.randn(1, 1, 8, 8))
    straight = _top1(result.model, digits)
    batches = training_batches(data.training_split(), preprocessing, Augmentation(flip=False), 64, seed=0)
    hooks = [Distillation(trained, TASK)]
    fit(result.model, batches, None, FitConfig(epochs=4, lr=0.02), CPU, task=TASK, hooks=hooks)
    recovered = _top1(result.model, digits)
    assert recovered > straight and recovered > dense - 5


def test_magnitude_beats_random_straight_after_pruning(
    trained: nn.Module, digits: tuple[DataSet, Preprocessing]
) -> None:
    def after(method: str, seed: int = 0) -> float:
        image = torch.randn(1, 1, 8, 8)
        calibration = CalibrationBatches(digits[0].training_split(), digits[1], 256, 64, seed=0)
        result = prunecli.prune(
            trained,
            method,
            ratio=0.3,
            scope="local",
            example_inputs=image,
            data=calibration,
            recalibrate=True,
            seed=seed,
        )
        return _top1(result.model, digits)

    assert after("l1") > np.mean([after("random", seed) for seed in range(4)])


def test_a_method_that_removes_no_channels_says_where_it_is_used() -> None:
    with pytest.raises(
        MethodError,
        match=r"method token does not rank channels.* use `prune token`, in Python prunecli\.methods\.runtime",
    ):
        prunecli.prune(build("cifar:resnet20"), "token", example_inputs=torch.randn(1, 3, 32, 32))
