"""Methods that set single weights to zero, on ResNet-20 for digits.

    python benchmarks/sparse_weights.py -o benchmarks/results/sparse_weights_digits.json

Three networks are trained from different seeds. Every method masks the same share of each network's weights, with the
method's own scope. Top-1 on the 360 test images, means over the seeds: straight after masking, after measuring batch
normalisation again on 256 training images (the command line's default where data are named), and after two epochs of
finetuning with the zeros held, the same for all. Nothing is chosen on test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.holding import holding
from prunecli.engine.tasks.classification import Classification
from prunecli.measure.environment import describe_environment
from prunecli.methods.sparse import SparseRequest, mask_weights
from prunecli.methods.sparse_index import SPARSE
from prunecli.methods.sparse_params import SparseParams
from prunecli.models.catalog import build
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm

CPU = torch.device("cpu")
TASK = Classification.with_classes(10)
SEEDS = (0, 1, 2)
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
EPOCHS, FINETUNE, CALIBRATION = 12, 2, 256


class Bench:
    """The data, and training on them."""

    def __init__(self, seed: int) -> None:
        self.seed, self.data = seed, load_data("digits")
        self.preprocessing = Preprocessing((1, 8, 8), self.data.mean, self.data.std)
        self.calibration = CalibrationBatches(
            self.data.training_split(), self.preprocessing, CALIBRATION, 128, seed=seed
        ).labelled

    def train(self, model: nn.Module, epochs: int, lr: float, hooks: Sequence[Any] = ()) -> None:
        """Trains in place."""
        batches = training_batches(
            self.data.training_split(), self.preprocessing, Augmentation(flip=False), 64, seed=self.seed
        )
        fit(model, batches, None, FitConfig(epochs=epochs, lr=lr), CPU, task=TASK, seed=self.seed, hooks=hooks)

    def top1(self, model: nn.Module) -> float:
        """On the test images."""
        return float(evaluate(model, evaluation_batches(self.data.test, self.preprocessing, 128), CPU).top1)

    def cell(self, dense: nn.Module, method: str, sparsity: float) -> dict[str, float]:
        """Figures of one method at one sparsity."""
        model = copy.deepcopy(dense).eval()
        request = SparseRequest(
            method=method,
            params=SparseParams(sparsity=sparsity),
            example_inputs=torch.randn(1, 1, 8, 8),
            seed=self.seed,
            calibration=self.calibration,
        )
        pruning = mask_weights(model, request)
        figures = {"sparsity": pruning.sparsity, "masked": self.top1(model)}
        recalibrate_batchnorm(model, [inputs for inputs, _ in self.calibration])
        figures["recalibrated"] = self.top1(model)
        self.train(model, FINETUNE, 0.02, holding(model, pruning.masks()))
        assert pruning.sparsity == figures["sparsity"]
        return figures | {"finetuned": self.top1(model)}


def measure(out: Path) -> None:
    """Measures every cell."""
    result: dict[str, Any] = {"environment": describe_environment(CPU), "seeds": list(SEEDS), "cells": []}
    for seed in SEEDS:
        bench = Bench(seed)
        torch.manual_seed(seed)
        dense = build("cifar:resnet20", in_chans=1)
        bench.train(dense, EPOCHS, 0.05)
        result["cells"].append({"seed": seed, "method": "dense", "sparsity": 0.0, "masked": bench.top1(dense)})
        for sparsity in SPARSITIES:
            for method in SPARSE:
                cell = {"seed": seed, "method": method, "asked": sparsity, **bench.cell(dense, method, sparsity)}
                result["cells"].append(cell)
                print(cell, flush=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def show(path: Path) -> None:
    """Prints means over the seeds as a table."""
    cells = json.loads(path.read_text())["cells"]
    print("| sparsity | method | masked | recalibrated | finetuned |\n|---:|---|---:|---:|---:|")
    for sparsity in SPARSITIES:
        for method in SPARSE:
            own = [cell for cell in cells if cell["method"] == method and cell["asked"] == sparsity]
            means = [statistics.mean(cell[kind] for cell in own) for kind in ("masked", "recalibrated", "finetuned")]
            print(f"| {sparsity} | `{method}` | " + " | ".join(f"{mean:.1f}" for mean in means) + " |")


def main() -> None:
    """Measures, or shows a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.out is not None:
        measure(arguments.out)
    show(arguments.table or arguments.out)


if __name__ == "__main__":
    main()
