"""Time of Hessian scores of recurrent units, beside a loop over units and curvlinops, and latency of pruned LSTMs.

    python benchmarks/importance_speed.py -o benchmarks/results/importance_speed.json [--rounds 5]

The network is a character model with two layers of 128 LSTM units and random weights, on which times do not depend.
One *probe* is a product of the Hessian with a random vector on one batch of 32 sequences of 64 characters. `hap` gets
from one probe an estimate for all units; a loop over units takes one product for each unit, with a vector that is zero
elsewhere. `hutchinson_diag` of curvlinops, if it is installed, estimates the same diagonal. Everything runs on one
thread, in turns. Latency is that of networks with 25, 50 and 75 % of the units removed, at batches of 1 and 32, paired.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, token_loss
from prunecli.criteria.hessian import differentiable_twice, hap, incoming, random_signs
from prunecli.criteria.probe import probe_of
from prunecli.measure.counts import count_macs
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import time_paired
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.catalog import build
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.tracing.trace import trace

VOCABULARY, PROBES = 65, 16
RATIOS = (0.25, 0.5, 0.75)
Batch = tuple[Tensor, Tensor]


def mean_loss(network: nn.Module, batch: Batch) -> Tensor:
    """The mean over sequences of the loss that `hap` uses."""
    return token_loss(network(batch[0]), batch[1]) / len(batch[0])


def ours(network: nn.Module, groups: list[ChannelGroup], batch: Batch) -> None:
    """`PROBES` probes for all units of all groups."""
    options = {"min_probes": PROBES, "max_probes": PROBES, "stability": 1.0}
    halves = [(batch[0], batch[1])] * 2
    hap(network, groups, Calibration(batches=halves, loss=token_loss, options=options))


def loop_over_units(network: nn.Module, groups: list[ChannelGroup], batch: Batch) -> None:
    """One probe for each unit, with a product of its own."""
    generator = torch.Generator().manual_seed(0)
    probe = probe_of(network)
    for group in groups:
        members = incoming(probe, group)
        leaves = [probe.get_parameter(member.name) for member in members]
        for unit in range(group.units):
            with differentiable_twice(probe):
                gradients = torch.autograd.grad(mean_loss(probe, batch), leaves, create_graph=True)
                vectors = []
                for member, leaf in zip(members, leaves, strict=True):
                    vector = torch.zeros_like(leaf)
                    rows = member.index[unit]
                    vector[rows] = random_signs(vector[rows], generator)
                    vectors.append(vector)
                torch.autograd.grad(gradients, leaves, vectors)


def curvlinops(network: nn.Module, groups: list[ChannelGroup], batch: Batch) -> None:
    """`PROBES` products with the Hessian by the same weights."""
    from curvlinops import HessianLinearOperator, hutchinson_diag

    probe = probe_of(network)
    names = dict.fromkeys(member.name for group in groups for member in incoming(probe, group))
    parameters = {name: probe.get_parameter(name) for name in names}

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        return token_loss(scores, targets) / len(scores)

    with differentiable_twice(probe):
        operator = HessianLinearOperator(probe, loss, list(parameters.values()), [batch], check_deterministic=False)
        hutchinson_diag(operator, PROBES)


def in_turns(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of every job, and the spread, over rounds in which all take a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {"median": statistics.median(taken), "least": min(taken), "most": max(taken)}
        for name, taken in seconds.items()
    }


def latency(network: nn.Module, rounds: int) -> list[dict[str, Any]]:
    """MACs and paired latency of pruned networks, relative to the dense one."""
    rows: list[dict[str, Any]] = []
    for batch in (1, 32):
        example = torch.randint(0, VOCABULARY, (batch, 64))
        pruned = [
            prune_structural(
                network, PruneRequest(method="l2", params=StructuralParams(ratio=ratio), example_inputs=example)
            ).model
            for ratio in RATIOS
        ]
        timing = time_paired([network, *pruned], [example] * (1 + len(pruned)), rounds=rounds)
        base = count_macs(network, example).total
        for column, (ratio, model) in enumerate(zip(RATIOS, pruned, strict=True), start=1):
            rows.append(
                {
                    "batch": batch,
                    "ratio": ratio,
                    "macs": count_macs(model, example).total / base,
                    "latency": timing.ratios[column],
                    "interval": list(timing.ratio_intervals[column]),
                }
            )
    return rows


def main() -> None:
    """Measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = build("lm:lstm", num_classes=VOCABULARY, units=128, layers=2).eval()
    batch = tuple(torch.randint(0, VOCABULARY, (2, 32, 64)))
    network = in_form(dense, batch[0])
    groups = list(trace(network, batch[0]).groups)
    jobs = {
        "hap, 16 probes": lambda: ours(network, groups, batch),
        "loop over units, 1 probe each": lambda: loop_over_units(network, groups, batch),
    }
    if find_spec("curvlinops") is not None:
        jobs["curvlinops, 16 probes"] = lambda: curvlinops(network, groups, batch)
    document = {
        "units": sum(group.units for group in groups),
        "seconds": in_turns(jobs, arguments.rounds),
        "latency": latency(dense, 40),
        "environment": describe_environment(),
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
