"""Time of scoring in one process and in two, and how far apart their scores are.

    python benchmarks/distributed_scores.py -o benchmarks/results/distributed_scores.json [--rounds 5] [--ranks 2]

A ResNet-20 with random weights, on which times do not depend, is scored on 8 batches of 16 images of 32 x 32 pixels, by
the gradients of gates (`taylor`), by covariances (`obs`) and by products with the Hessian (`hap`). In every round, and
in turns, the first process scores alone while the others wait, and all of them score together; every process has one
thread. Ratios are those within a round, so that a machine that is busy with something else slows both. Beside the time
on the clock there is that of the processor in the busiest process, which others cannot take away: what one process has
to compute when it shares the work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from prunecli.criteria.base import Calibration, Criterion
from prunecli.measure.environment import describe_environment
from prunecli.methods.registry import get_structural
from prunecli.models.catalog import build
from prunecli.ranks import alone, gathered, rank, wait_for_all
from prunecli.surgery.tracing.trace import trace

CRITERIA = ("taylor", "obs", "hap")
BATCHES, SAMPLES = 8, 16
Scores = dict[str, Tensor | str]


def scoring(criterion: str) -> Callable[[], Scores]:
    """A function that scores, with everything made that it needs."""
    torch.manual_seed(0)
    network = build("cifar:resnet20").eval()
    generator = torch.Generator().manual_seed(1)
    data = [
        (
            torch.randn(SAMPLES, 3, 32, 32, generator=generator),
            torch.randint(0, 10, (SAMPLES,), generator=generator),
        )
        for _ in range(BATCHES)
    ]
    groups = trace(network, data[0][0][:1]).groups
    method: Criterion = get_structural(criterion).load()

    def score() -> Scores:
        seeded = torch.Generator().manual_seed(2)
        return method(
            network,
            groups,
            Calibration(generator=seeded, batches=data, options={"min_probes": BATCHES, "max_probes": BATCHES}),
        )

    return score


def timed(score: Callable[[], Scores]) -> tuple[float, float, Scores]:
    """Seconds on the clock and of the processor, and the scores."""
    start, busy = time.perf_counter(), time.process_time()
    scores = score()
    return time.perf_counter() - start, time.process_time() - busy, scores


def apart(first: Scores, second: Scores) -> float:
    """The largest difference relative to the largest score of a group."""
    pairs = [(first[name], second[name]) for name in first]
    known = [(one, other) for one, other in pairs if isinstance(one, Tensor) and isinstance(other, Tensor)]
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in known)


def rounds_of(criterion: str, rounds: int) -> dict[str, Any] | None:
    """Figures of one criterion; called by all processes, of which the first has them."""
    score, together, by_one = scoring(criterion), [], []
    difference = 0.0
    for number in range(rounds + 1):  # the first warms up
        scores: Scores = {}
        found: dict[str, Scores] = {}
        for shared in (number % 2 == 0, number % 2 == 1):
            wait_for_all()
            if shared:
                clock, busy, scores = timed(score)
                everywhere = gathered((clock, busy))
                found["together"] = scores
                together.append([max(each[place] for each in everywhere) for place in (0, 1)])
            elif rank() == 0:
                with alone():
                    clock, busy, scores = timed(score)
                found["alone"] = scores
                by_one.append([clock, busy])
            wait_for_all()
        if rank() == 0:
            difference = max(difference, apart(found["alone"], found["together"]))
    if rank() > 0:
        return None
    together, by_one = together[1:], by_one[1:]
    ratios = {
        name: sorted(one[place] / all_[place] for one, all_ in zip(by_one, together, strict=True))
        for place, name in enumerate(("clock", "processor"))
    }
    return {
        "seconds_alone": statistics.median(one[0] for one in by_one),
        "seconds_together": statistics.median(each[0] for each in together),
        "processor_seconds_alone": statistics.median(one[1] for one in by_one),
        "processor_seconds_together": statistics.median(each[1] for each in together),
        "faster": {name: {"median": statistics.median(own), "all": own} for name, own in ratios.items()},
        "largest_relative_difference": difference,
    }


def work(number: int, size: int, store: str, rounds: int, output: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=size)
    before = os.getloadavg()
    figures = {criterion: rounds_of(criterion, rounds) for criterion in CRITERIA}
    if number == 0:
        document = {
            "ranks": size,
            "rounds": rounds,
            "batches": BATCHES,
            "samples_per_batch": SAMPLES,
            "criteria": figures,
            "load_average": {"before": before, "after": os.getloadavg(), "cores": os.cpu_count()},
            "environment": describe_environment(),
        }
        Path(output).write_text(json.dumps(document, indent=1) + "\n")
    dist.destroy_process_group()


def main() -> None:
    """Starts the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (given.ranks, str(Path(folder) / "store"), given.rounds, given.output)
        multiprocessing.spawn(work, arguments, nprocs=given.ranks)


if __name__ == "__main__":
    main()
