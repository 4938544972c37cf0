"""Training in one process and in two: `fit`, and the same loop around torch's DistributedDataParallel.

    python benchmarks/distributed.py -o benchmarks/results/distributed.json [--rounds 8] [--processes 2]

A ResNet-20 with random weights, on which times do not depend, is trained for one epoch on 8 batches of 64 random
images of 32 x 32 pixels; every process has one thread. In every round, and in another order each time, the first
process trains alone while the others wait, all of them share the batches in `fit`, and all of them do in a plain loop
around DistributedDataParallel with the same optimizer, also alone. Efficiency is the time of one process over
that of N, divided by N, within a round, so that a machine that is busy with something else slows both. Beside the time
on the clock there is that of the processor in the busiest process, which others cannot take away. `fit` also checks at
the end of the epoch that all networks are equal, joins running statistics and agrees on losses and signals after each
batch; the plain loop does none of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.optimizer import make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.measure.environment import describe_environment
from prunecli.models.catalog import build
from prunecli.ranks import alone, digest, gathered, own_share, rank, wait_for_all, world_size

BATCHES, SAMPLES = 8, 64
CONFIG = FitConfig(epochs=1, lr=0.05, schedule="constant")
CPU = torch.device("cpu")


class Images:
    """Batches in memory, of which every process takes its share."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(BATCHES, SAMPLES, 3, 32, 32, generator=generator)
        self._labels = torch.randint(10, (BATCHES, SAMPLES), generator=generator)

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        share = own_share(range(SAMPLES))
        for images, labels in zip(self._images, self._labels, strict=True):
            yield images[share], labels[share]


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("cifar:resnet20", num_classes=10)


def by_fit(batches: Images) -> None:
    fit(network(), batches, None, CONFIG, CPU, task=Classification.with_classes(10))


def by_plain_loop(batches: Images) -> None:
    model = network().train().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, CONFIG)
    parallel = DistributedDataParallel(model) if world_size() > 1 else model
    for images, labels in batches:
        scores = parallel(images.to(memory_format=torch.channels_last))
        nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def timed(train: Callable[[Images], None], batches: Images) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    train(batches)
    return time.perf_counter() - start, time.process_time() - busy


def one_round(batches: Images, number: int) -> dict[str, list[float]]:
    """Seconds of each way, the largest of all processes; of one process, those of the first."""
    arms = [("fit alone", by_fit), ("fit", by_fit), ("plain alone", by_plain_loop), ("plain", by_plain_loop)]
    seconds: dict[str, list[float]] = {}
    for name, train in arms[number % len(arms) :] + arms[: number % len(arms)]:
        wait_for_all()
        if name.endswith("alone"):
            if rank() == 0:
                with alone():
                    seconds[name] = list(timed(train, batches))
        else:
            everywhere = gathered(timed(train, batches))
            seconds[name] = [max(each[place] for each in everywhere) for place in (0, 1)]
        wait_for_all()
    return seconds


def figures(rounds: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Medians, and ratios within rounds."""
    found: dict[str, Any] = {}
    for place, kind in enumerate(("clock", "processor")):
        found[kind] = {"seconds": {name: statistics.median(each[name][place] for each in rounds) for name in rounds[0]}}
        for way in ("fit", "plain"):
            ratios = sorted(each[f"{way} alone"][place] / each[way][place] / world_size() for each in rounds)
            found[kind][f"efficiency of {way}"] = {"median": statistics.median(ratios), "all": ratios}
        ratios = sorted(each["fit"][place] / each["plain"][place] for each in rounds)
        found[kind]["fit over plain"] = {"median": statistics.median(ratios), "all": ratios}
    return found


def check_seconds(model: nn.Module) -> float:
    """What comparing the networks of all processes costs once."""
    start = time.perf_counter()
    digest(model.state_dict())
    return time.perf_counter() - start


def work(number: int, size: int, store: str, rounds: int, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=size)
    batches = Images()
    one_round(batches, 0)  # warms up
    done = [one_round(batches, index) for index in range(rounds)]
    if number == 0:
        model = network()
        numbers = sum(parameter.numel() for parameter in model.parameters())
        buffers = sum(buffer.numel() for buffer in model.buffers() if buffer.is_floating_point())
        document = {
            "environment": describe_environment(),
            "processes": size,
            "network": "cifar:resnet20",
            "batches": BATCHES,
            "samples_in_a_batch": SAMPLES,
            "rounds": rounds,
            # Each process sends 2 (N - 1) / N of this in a ring, float32 gradients and float64 statistics.
            "bytes_added_up_in_a_step": {"gradients": 4 * numbers, "running statistics": 8 * buffers},
            "seconds_to_compare_networks": check_seconds(model),
            **figures(done),
        }
        Path(output).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for kind in ("clock", "processor"):
            row = {name: value["median"] for name, value in document[kind].items() if name != "seconds"}
            print(kind, {name: round(value, 3) for name, value in row.items()})
    wait_for_all()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = (arguments.processes, f"{folder}/store", arguments.rounds, str(arguments.out))
        multiprocessing.spawn(work, given, nprocs=arguments.processes)


if __name__ == "__main__":
    main()
