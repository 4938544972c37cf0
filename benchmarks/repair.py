"""ResNets on CIFAR-10 straight after pruning, with each repair, and with the one that is chosen without labels.

    PRUNE_DATA=DATA python benchmarks/repair.py DATA/weights -o benchmarks/results/repair_resnet.json
    python benchmarks/repair.py --table benchmarks/results/repair_resnet.json

The same channels are removed each time: the given share of every inner width, by l1. Seeds draw the calibration images
from the training images; "auto" chooses among the repairs by the difference to the dense network on a quarter of
them. Top-1 on the first test images; nothing is chosen on these.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.engine.evaluate import evaluate
from prunecli.measure.environment import describe_environment
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import load_file
from prunecli.surgery.removal.compensate import Compensation

CPU = torch.device("cpu")
NETWORKS = {"resnet56": ("resnet56-4bfd9763.th", 0.5), "resnet20": ("resnet20-12fca82f.th", 0.125)}
REPAIRS: tuple[tuple[Compensation, bool | None], ...] = (
    *((kind, again) for kind in ("none", "ls", "reconstruct") for again in (False, True)),  # type: ignore[misc]
    ("auto", None),
)


def measure(weights: Path, out: Path, images: int, calibration: int, seeds: int) -> None:
    """Every repair of every network at every seed."""
    data = load_data("cifar10")
    preprocessing = Preprocessing((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    test = list(evaluation_batches(data.test.subset(np.arange(images)), preprocessing, 250))
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    document: dict[str, Any] = {
        "environment": describe_environment(), "images": images, "calibration": calibration, "dense": {}, "rows": [],
    }  # fmt: skip
    for name, (file, ratio) in NETWORKS.items():
        dense = load_file(weights / file, f"cifar:{name}").model
        document["dense"][name] = evaluate(dense, test, CPU).top1
        for seed in range(seeds):
            for compensation, recalibrate in REPAIRS:
                request = PruneRequest(
                    method="l1", params=StructuralParams(ratio=ratio, scope="local"), example_inputs=example, seed=seed,
                    calibration=CalibrationBatches(data.training_split(), preprocessing, calibration, 64, seed=seed),
                    compensation=compensation, recalibrate=recalibrate,
                )  # fmt: skip
                start = time.perf_counter()
                result = prune_structural(dense, request)
                seconds = time.perf_counter() - start
                chosen = [t for t in result.report.repairs if t.chosen]
                row = {
                    "network": name, "ratio": ratio, "seed": seed, "compensation": compensation,
                    "recalibrate": recalibrate, "top1": evaluate(result.model, test, CPU).top1, "seconds": seconds,
                    "chosen": [chosen[0].compensation, chosen[0].recalibrated] if chosen else None,
                }  # fmt: skip
                document["rows"].append(row)
                print(json.dumps(row), flush=True)
                out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(path: Path) -> None:
    """Markdown: mean and standard deviation over seeds."""
    document = json.loads(path.read_text())
    for network, top1 in document["dense"].items():
        rows = [row for row in document["rows"] if row["network"] == network]
        print(f"\n{network}, {rows[0]['ratio']:.1%} of every inner width; dense {top1:.2f} %\n")
        print("| repair | straight after | with new statistics | seconds |\n|---|---:|---:|---:|")
        for kind in dict.fromkeys(row["compensation"] for row in rows):
            own = [row for row in rows if row["compensation"] == kind]
            shares = [[row["top1"] for row in own if row["recalibrate"] is again] for again in (False, True, None)]
            cells = [_spread(values) if values else "" for values in (shares[0] or shares[2], shares[1])]
            print(f"| {kind} | {cells[0]} | {cells[1]} | {statistics.median(row['seconds'] for row in own):.0f} |")
        print("chosen:", [row["chosen"] for row in rows if row["chosen"]])


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--calibration", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.table is not None:
        table(arguments.table)
    elif arguments.weights is None or arguments.out is None:
        parser.error("give the folder of weights and -o FILE, or --table FILE")
    else:
        measure(arguments.weights, arguments.out, arguments.images, arguments.calibration, arguments.seeds)


if __name__ == "__main__":
    main()
