"""Which channels, and how many in which layer: ResNets on CIFAR-10 straight after pruning, at equal MACs.

    PRUNE_DATA=DATA python benchmarks/widths.py DATA/weights/resnet56-4bfd9763.th --arch cifar:resnet56 -o widths.json

Every method is combined with every scope; networks are repaired by reconstruction, statistics of normalisations kept,
with 400 training images without labels. Scope local rounds coarsely, so its share of the MACs may differ; it is in the
results. Top-1 on the test images; the deviation is that over draws of the training images. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.engine.evaluate import evaluate
from prunecli.measure.environment import describe_environment
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import load_file

METHODS = ("l1", "flap", "taylor", "obs", "obs-greedy")
SCOPES = ("local", "global", "measured")
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--scopes", nargs="+", default=SCOPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dense = load_file(arguments.weights, arguments.arch).model
    data = load_data("cifar10")
    preprocessing = Preprocessing((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    test = list(evaluation_batches(data.test, preprocessing, 250))
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    document: dict[str, Any] = {
        "environment": describe_environment(),
        "arch": arguments.arch,
        "test_images": len(data.test.labels),
        "before": evaluate(dense, test, CPU).top1,
        "runs": [],
    }
    for seed in arguments.seeds:
        calibration = list(CalibrationBatches(data.training_split(), preprocessing, 400, 100, seed=seed).labelled)
        for macs in arguments.macs:
            for method in arguments.methods:
                for scope in arguments.scopes:
                    request = PruneRequest(
                        method=method,
                        params=get_structural(method).params_class(macs=macs, scope=scope),
                        example_inputs=example,
                        calibration=calibration,
                        compensation="reconstruct",
                        recalibrate=False,
                        seed=seed,
                    )
                    start = time.process_time()
                    done = prune_structural(dense, request)
                    row = {
                        "seed": seed,
                        "macs": macs,
                        "method": method,
                        "scope": scope,
                        "seconds": time.process_time() - start,
                        "macs_left": done.report.macs_after.total / done.report.macs_before.total,
                        "params_left": done.report.params_after / done.report.params_before,
                        "top1": evaluate(done.model, test, CPU).top1,
                    }
                    document["runs"].append(row)
                    print(json.dumps(row), flush=True)
                    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for macs in arguments.macs:
        for method in arguments.methods:
            for scope in arguments.scopes:
                rows = [
                    row
                    for row in document["runs"]
                    if (row["macs"], row["method"], row["scope"]) == (macs, method, scope)
                ]
                values = [row["top1"] for row in rows]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                left = statistics.mean(row["macs_left"] for row in rows)
                print(f"{macs} {method:12} {scope:10} {statistics.mean(values):6.2f} +- {spread:.2f}  MACs {left:.3f}")


if __name__ == "__main__":
    main()
