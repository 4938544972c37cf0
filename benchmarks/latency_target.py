"""`--latency 0.5`: how near it comes, what widths that are fast gain over multiples of 8, and ResNet-50 at 0.5.

    python benchmarks/latency_target.py -o latency_target.json [--rounds 60] [--threads 1]

The weights are random, because times do not depend on them. Every time is measured in turns with the dense network's,
on one image. "Reached" is measured again after pruning, by 60 rounds of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.copying import copied
from prunecli.measure.counts import count_macs
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import Execution, time_paired
from prunecli.methods.allocation import Demand, allocate
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import rank
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.methods.widths import widths_of
from prunecli.models.catalog import build
from prunecli.surgery.removal.slice import remove

NETWORKS = ("timm:resnet50", "timm:mobilenetv2_100", "timm:efficientnet_b0", "timm:vit_tiny_patch16_224")
RATIOS = (0.3, 0.4, 0.5, 0.6)
_TARGET = 0.5


def targets(dense: nn.Module, example: torch.Tensor, rounds: int, runs: int) -> list[dict[str, Any]]:
    """Prunes to half of the time, several times, and times each result again."""
    rows = []
    for _ in range(runs):
        params = StructuralParams(latency=_TARGET, scope="local")
        result = prune_structural(dense, PruneRequest(method="l1", params=params, example_inputs=example))
        timing = time_paired([dense, result.model], [example, example], rounds=rounds)
        target = result.report.target
        assert target is not None
        row = {
            "claimed": target.achieved,
            "reached": timing.ratios[1],
            "interval": timing.ratio_intervals[1],
            "macs": result.report.macs_after.total / result.report.macs_before.total,
            "seconds": result.report.seconds,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def widths(dense: nn.Module, example: torch.Tensor, rounds: int) -> list[dict[str, Any]]:
    """Removes equal shares of all widths, rounded to multiples of 8 or to widths that are fast; times all in turns."""
    params = StructuralParams(scope="local")
    ranking = rank(dense, PruneRequest(method="l1", params=params, example_inputs=example))
    groups = list(ranking.groups)
    channels = {group.name: group.channels for group in groups}
    fast = widths_of(dense, groups, params, "latency", example, channels).chosen
    whole = count_macs(dense, example).total
    rows = []
    for ratio in RATIOS:
        networks, figures = [dense], []
        for chosen in ({}, fast):
            allocation = allocate(groups, ranking.scores, params, Demand(ratio, widths=chosen))
            network = copied(dense)
            remove(network, groups, allocation.keep)
            networks.append(network)
            figures.append((1 - allocation.achieved, count_macs(network, example).total / whole))
        timing = time_paired(networks, [example] * 3, rounds=rounds)
        row: dict[str, Any] = {"ratio": ratio}
        for place, name in enumerate(("by_8", "fast"), start=1):
            kept, macs = figures[place - 1]
            row[name] = {"channels": kept, "macs": macs, "latency": timing.ratios[place]}
            row[name]["interval"] = timing.ratio_intervals[place]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def executions(dense: nn.Module, example: torch.Tensor, rounds: int) -> list[dict[str, Any]]:
    """Half of every width, with and without the first layer, as it is and with channels last."""
    rows = []
    for stem in (False, True):
        params = StructuralParams(ratio=0.5, scope="local", prune_stem=stem)
        result = prune_structural(dense, PruneRequest(method="l1", params=params, example_inputs=example))
        for last in (False, True):
            execution = Execution(channels_last=last)
            timing = time_paired([dense, result.model], [example, example], rounds=rounds, execution=execution)
            low, high = timing.ratio_intervals[1]
            row = {
                "stem": stem,
                "channels_last": last,
                "macs": result.report.macs_before.total / result.report.macs_after.total,
                "speedup": 1 / timing.ratios[1],
                "interval": (1 / high, 1 / low),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    document: dict[str, Any] = {"environment": describe_environment(), "rounds": arguments.rounds}
    for ref in arguments.networks:
        torch.manual_seed(0)
        dense, example = build(ref).eval(), torch.randn(1, 3, 224, 224)
        print(ref, flush=True)
        document[ref] = {
            "targets": targets(dense, example, arguments.rounds, arguments.runs),
            "widths": widths(dense, example, arguments.rounds),
        }
        if ref == "timm:resnet50":
            document[ref]["executions"] = executions(dense, example, arguments.rounds)
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
