"""Wall time of finding and removing channels, beside torch-pruning, in interleaved pairs.

    python benchmarks/prune_time.py -o prune_time.json [--rounds 7]

Ours is the whole flow with its trial removals and the verification in float64, which torch-pruning does not have; its
phases are listed apart. Both start from the same dense network at ratio 0.5, the same ratio in every layer.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import summarise
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_method
from prunecli.methods.structural import prune_structural
from prunecli.models.catalog import build

NETWORKS = {"cifar:resnet56": 32, "timm:resnet50": 224, "timm:mobilenetv3_large_100": 224}


def whole_flow(model: nn.Module, example: torch.Tensor) -> None:
    prune_structural(model, example, get_method("l1").load(), StructuralParams(ratio=0.5, scope="local"))


def torch_pruning(model: nn.Module, example: torch.Tensor) -> None:
    copied = copy.deepcopy(model)
    ignored = [module for module in copied.modules() if isinstance(module, nn.Linear) and module.out_features >= 10][
        -1:
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            copied,
            example,
            tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=ignored,
            round_to=8,
        )
        pruner.step()


def seconds(function: Callable[[nn.Module, torch.Tensor], None], model: nn.Module, example: torch.Tensor) -> float:
    start = time.perf_counter()
    function(model, example)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    document: dict[str, object] = {"environment": describe_environment(), "rounds": arguments.rounds}
    for ref, size in NETWORKS.items():
        torch.manual_seed(0)
        model, example = build(ref).eval(), torch.randn(1, 3, size, size)
        functions = [torch_pruning, whole_flow]
        for function in functions:
            function(model, example)
        samples = np.empty((arguments.rounds, len(functions)))
        phases: list[dict[str, float]] = []
        for row in range(arguments.rounds):
            order = range(len(functions)) if row % 2 == 0 else reversed(range(len(functions)))
            for column in order:
                samples[row, column] = seconds(functions[column], model, example)
            params = StructuralParams(ratio=0.5, scope="local")
            phases.append(prune_structural(model, example, get_method("l1").load(), params).seconds)
        paired = summarise(samples)
        result = {
            "torch_pruning_s": paired.timings[0].median,
            "ours_with_proof_s": paired.timings[1].median,
            "ratio": paired.ratios[1],
            "ratio_interval": paired.ratio_intervals[1],
            "ours_by_phase_s": {key: float(np.median([phase[key] for phase in phases])) for key in phases[0]},
        }
        document[ref] = result
        print(ref, json.dumps(result), flush=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
