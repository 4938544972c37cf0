"""Finetuning of a pruned ResNet-20 on CIFAR-10: labels alone, or with the dense network as teacher.

    PRUNE_DATA=DATA python benchmarks/finetuning.py DATA/weights/resnet20-12fca82f.th -o finetuning.json
    python benchmarks/finetuning.py --table finetuning.json

`best` prunes to half of the MACs and repairs on 1,024 images; then come SGD, cosine to zero, batches of 128, on all
training images. Top-1 on two halves of the test images: settings were chosen on the first, and the second was not
looked at before. Seeds order the training images. Seconds are processor time of one thread, without testing.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.tasks.index import task_of
from prunecli.measure.environment import describe_environment
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import load_file
from prunecli.studies.torch_pruning import prune_uniform

CPU = torch.device("cpu")
_TEACHER = {"weight": 0.5, "temperature": 10.0}
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, float] | None]] = {
    "labels alone": ("best", {}, None),
    "teacher, T = 10": ("best", {}, _TEACHER),
    "labels alone, 2 epochs": ("best", {"epochs": 2}, None),
    "torch-pruning, labels alone": ("torch-pruning", {}, None),
    "torch-pruning, teacher": ("torch-pruning", {}, _TEACHER),
    "teacher, T = 4": ("best", {}, {**_TEACHER, "temperature": 4.0}),
    "teacher, T = 2": ("best", {}, {**_TEACHER, "temperature": 2.0}),
    "teacher, T = 20": ("best", {}, {**_TEACHER, "temperature": 20.0}),
    "teacher alone (weight 1)": ("best", {}, {**_TEACHER, "weight": 1.0}),
    "teacher, rate 0.003": ("best", {"lr": 0.003}, _TEACHER),
    "teacher, rate 0.03": ("best", {"lr": 0.03}, _TEACHER),
}


def pruned(dense: nn.Module, method: str, data: Any, preprocessing: Preprocessing) -> nn.Module:
    """A network with half of the MACs."""
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if method == "torch-pruning":
        stem: Any = dense.conv1
        return prune_uniform(dense, example, 0.5, 10, keep=(stem,))
    request = PruneRequest(
        method=method,
        params=get_structural(method).params_class(macs=0.502),
        example_inputs=example,
        calibration=CalibrationBatches(data.training_split(), preprocessing, 1024, 128, seed=0),
        compensation="auto",
        recalibrate=None,
    )
    return prune_structural(dense, request).model


def measure(weights: Path, out: Path, seeds: list[int]) -> None:
    """Every way with every seed."""
    dense = load_file(weights, "cifar:resnet20").model
    data = load_data("cifar10")
    preprocessing = Preprocessing((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    test = list(evaluation_batches(data.test, preprocessing, 250))
    halves = test[: len(test) // 2], test[len(test) // 2 :]

    def accuracies(network: nn.Module) -> list[float]:
        return [evaluate(network, half, CPU).top1 for half in halves]

    starts = {method: pruned(dense, method, data, preprocessing) for method in ("best", "torch-pruning")}
    document: dict[str, Any] = {"environment": describe_environment(), "dense": accuracies(dense), "rows": []}
    document["straight_after"] = {method: accuracies(network) for method, network in starts.items()}
    for seed in seeds:
        for name, (method, settings, teacher) in WAYS.items():
            network, task = copy.deepcopy(starts[method]), task_of(data)
            config = FitConfig(**{"epochs": 1, "lr": 0.01, **settings})
            train = training_batches(data.training_split(), preprocessing, Augmentation(), 128, seed=seed)
            hooks = [Distillation(copy.deepcopy(dense), task, **teacher)] if teacher else []
            start = time.process_time()
            fit(network, train, None, config, CPU, task=task, seed=seed, hooks=hooks)
            row = {"way": name, "seed": seed, "seconds": time.process_time() - start, "top1": accuracies(network)}
            document["rows"].append(row)
            print(json.dumps(row), flush=True)
            out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def table(path: Path) -> None:
    """Prints the table of docs/finetuning.md."""
    document = json.loads(path.read_text(encoding="utf-8"))
    print("| | first half | second half | seconds |\n|---|---:|---:|---:|")
    for name in WAYS:
        rows = [row for row in document["rows"] if row["way"] == name]
        if not rows:
            continue
        cells = []
        for half in (0, 1):
            values = [row["top1"][half] for row in rows]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"| {name} | {cells[0]} | {cells[1]} | {statistics.mean(row['seconds'] for row in rows):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        table(arguments.table)
    else:
        measure(arguments.weights, arguments.out, arguments.seeds)


if __name__ == "__main__":
    main()
