"""MACs ratio against paired latency ratio of networks pruned at several ratios.

    python benchmarks/macs_latency.py -o macs_latency.json [--rounds 40] [--threads 1]

The weights are random, because neither ratio depends on them. The interval is a 95 % bootstrap over interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from prunecli.measure.counts import count_macs
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import time_paired
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.catalog import build

NETWORKS = {"cifar:resnet56": 32, "timm:resnet18": 224, "timm:resnet50": 224}
RATIOS = (0.3, 0.5, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    document: dict[str, object] = {"environment": describe_environment(), "rounds": arguments.rounds}
    for ref, size in NETWORKS.items():
        torch.manual_seed(0)
        dense, example = build(ref).eval(), torch.randn(1, 3, size, size)
        pruned = [
            prune_structural(
                dense, PruneRequest(method="l1", params=StructuralParams(ratio=ratio), example_inputs=example)
            ).model
            for ratio in RATIOS
        ]
        timing = time_paired([dense, *pruned], [example] * (1 + len(pruned)), rounds=arguments.rounds)
        base = count_macs(dense, example).total
        rows = [
            {
                "ratio": ratio,
                "macs_ratio": count_macs(model, example).total / base,
                "latency_ratio": timing.ratios[column],
                "latency_ratio_interval": timing.ratio_intervals[column],
            }
            for column, (ratio, model) in enumerate(zip(RATIOS, pruned, strict=True), start=1)
        ]
        document[ref] = {"dense_ms": timing.timings[0].median, "pruned": rows}
        print(ref, json.dumps(document[ref]), flush=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
