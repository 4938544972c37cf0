"""ResNet-56 on CIFAR-10 at ratio 0.5, and torch-pruning's MagnitudePruner with the same finetuning.

    PRUNE_DATA=DATA python benchmarks/resnet56_cifar10.py DATA/weights/resnet56-4bfd9763.th -o resnet56.json

All have as many MACs as with half of every inner width. Accuracy is top-1 on the test images: before, straight after
pruning, and after finetuning on all training images, with a learning rate that falls to zero over the epochs. Nothing
is chosen on the test images: the last epoch counts. "prune best" finds widths by what layers cost on trial, "prune l1"
takes half of every width, and both repair as the command line does by default, on 1,024 training images without labels.
"distilled" learns from the dense network too while it is finetuned, as the command line does by default. Seconds are
processor time of one thread, of pruning and of finetuning.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import Epoch, fit
from prunecli.engine.tasks.index import task_of
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import load_file
from prunecli.report.table import Table

CPU = torch.device("cpu")
METHODS = (
    "prune best",
    "prune l1",
    "prune best, distilled",
    "prune l1, distilled",
    "torch-pruning",
    "torch-pruning, distilled",
)
_MACS = 0.502
"""Share that is left when every inner width is halved."""


def prune_ours(model: nn.Module, method: str, example: torch.Tensor, calibration: Any) -> nn.Module:
    params = {"ratio": 0.5, "scope": "local"} if method == "l1" else {"macs": _MACS}
    request = PruneRequest(
        method=method,
        params=get_structural(method).params_class(**params),
        example_inputs=example,
        calibration=calibration,
        compensation="auto",
        recalibrate=None,
    )
    return prune_structural(model, request).model


def prune_torch_pruning(model: nn.Module, example: torch.Tensor) -> nn.Module:
    pruned = copy.deepcopy(model)
    pruner = tp.pruner.MagnitudePruner(
        pruned,
        example,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[pruned.conv1, pruned.linear],
    )
    pruner.step()
    return pruned


class TestAccuracy:
    """Evaluates after every epoch."""

    def __init__(self, model: nn.Module, batches: Any) -> None:
        self.model, self.batches = model, batches
        self.by_epoch: dict[int, float] = {}
        self.seconds = 0.0

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        pass

    def on_epoch(self, epoch: Epoch, tables: Sequence[Table]) -> None:
        start = time.process_time()
        self.by_epoch[epoch.epoch] = evaluate(self.model, self.batches, CPU).top1
        self.seconds += time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.01, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dense = load_file(arguments.weights, "cifar:resnet56").model
    data = load_data("cifar10")
    preprocessing = Preprocessing((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    test = list(evaluation_batches(data.test, preprocessing, 250))
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    config = FitConfig(epochs=arguments.epochs, lr=arguments.lr)
    document: dict[str, Any] = {
        "environment": describe_environment(),
        "test_images": len(data.test.labels),
        "training_images": len(data.training_split().labels),
        "finetuning": {
            "epochs": arguments.epochs,
            "lr": arguments.lr,
            "schedule": "cosine",
            "batch_size": 128,
            "weight_decay": 5e-4,
        },
        "before": {
            "top1": evaluate(dense, test, CPU).top1,
            "params": parameter_count(dense),
            "macs": count_macs(dense, example).total,
        },
        "runs": [],
    }
    for seed in arguments.seeds:
        for name in arguments.methods:
            start = time.process_time()
            if name.startswith("torch-pruning"):
                model = prune_torch_pruning(dense, example)
            else:
                calibration = CalibrationBatches(data.training_split(), preprocessing, 1024, 128, seed=seed)
                model = prune_ours(dense, name.split()[1].rstrip(","), example, calibration)
            pruning = time.process_time() - start
            row = {
                "method": name,
                "seed": seed,
                "params": parameter_count(model),
                "macs": count_macs(model, example).total,
                "straight_after": evaluate(model, test, CPU).top1,
            }
            train = training_batches(data.training_split(), preprocessing, Augmentation(), 128, seed=seed)
            progress, task = TestAccuracy(model, test), task_of(data)
            hooks = [Distillation(dense, task)] if name.endswith("distilled") else []
            start = time.process_time()
            fit(model, train, None, config, CPU, task=task, seed=seed, progress=progress, hooks=hooks)
            finetuning = time.process_time() - start - progress.seconds
            row |= {"by_epoch": progress.by_epoch, "finetuned": progress.by_epoch[arguments.epochs]}
            row |= {"pruning_seconds": pruning, "finetuning_seconds": finetuning}
            document["runs"].append(row)
            print(json.dumps(row), flush=True)
            arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for name in arguments.methods:
        rows = [row for row in document["runs"] if row["method"] == name]
        for figure in ("straight_after", "finetuned", "finetuning_seconds"):
            values = [row[figure] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{name:20} {figure:15} {statistics.mean(values):6.2f} +- {spread:.2f}")


if __name__ == "__main__":
    main()
