"""What collecting spike scores costs over a plain forward pass, and a training step over a plain spikingjelly loop.

    python benchmarks/spiking_cost.py -o benchmarks/results/spiking_cost.json

Times are taken alternately (one of each, then in reverse order); ratios are those of `prunecli.measure.latency`: of the
10th percentiles, with a conservative bootstrap interval. Peak memory is measured by torch's MemTracker while scores are
collected from 1, 4 and 16 batches. Batches of 64 random images of 32x32 pixels, one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from prunecli.criteria.base import Calibration
from prunecli.criteria.spike import spike
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import Epoch, fit
from prunecli.engine.tasks.base import Labels
from prunecli.engine.tasks.index import task_of
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import summarise
from prunecli.models.catalog import build
from prunecli.report.table import Table
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.tracing.trace import trace

CPU = torch.device("cpu")
TASK = task_of(Labels("random", "classification", tuple("0123456789")))
NETWORKS = {"spiking:vgg9": {"width": 0.25}, "spiking:spikformer-2-64": {}}
CRITERIA = ("rate", "rate+v", "entropy", "variance", "singular")
BATCH, STEPS = 64, 4


def network(ref: str, kwargs: dict[str, Any]) -> nn.Module:
    """A network with neurons that fire."""
    torch.manual_seed(0)
    model = build(ref, num_classes=10, **kwargs).eval()
    pair = with_active_neurons(model, model, images(8))
    assert pair is not None
    return pair[0]


def images(count: int = BATCH) -> Tensor:
    """Random images."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ratio(first: Callable[[], float], second: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Median milliseconds of both and the ratio second / first; each call returns the seconds it took."""
    first(), second()
    samples = np.empty((rounds, 2))
    for turn in range(rounds):
        for column in (0, 1) if turn % 2 == 0 else (1, 0):
            samples[turn, column] = (first, second)[column]() * 1e3
    paired = summarise(samples, quantile=0.1, confidence=0.99)
    return {
        "milliseconds": [timing.median for timing in paired.timings],
        "ratio": paired.ratios[1],
        "interval": paired.ratio_intervals[1],
    }


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """`work` as a function that returns how many seconds it took."""

    def measured() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return measured


def collecting(model: nn.Module, rounds: int) -> dict[str, Any]:
    """Time of every criterion relative to a plain pass over the same batch."""
    x = images()
    groups = trace(model, x[:1]).groups

    def plain() -> None:
        with torch.no_grad():
            model(x)

    return {
        criterion: ratio(
            timed(plain),
            timed(lambda c=criterion: spike(model, groups, Calibration(batches=[x], options={"criterion": c}))),
            rounds,
        )
        for criterion in CRITERIA
    }


def memory(model: nn.Module, criterion: str, batches: int) -> int:
    """Peak bytes while scores are collected."""
    groups = trace(model, images(1)).groups
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        spike(model, groups, Calibration(batches=_Drawn(batches, tracker), options={"criterion": criterion}))
    peak = tracker.get_tracker_snapshot("peak")
    return int(sum(sizes["Total"] for device, sizes in peak.items() if device.type == "cpu"))


class _Drawn:
    """Batches drawn on demand, so that none is kept."""

    def __init__(self, count: int, tracker: MemTracker) -> None:
        self._count, self._tracker = count, tracker

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self._count):
            self._tracker.reset_mod_stats()  # it follows one pass of a module at a time
            yield images()


class _Batches:
    batch_size = BATCH

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(STEPS):
            yield images(), torch.arange(BATCH) % 10


class _Stamps:
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self.times.append(time.perf_counter())

    def on_epoch(self, epoch: Epoch, tables: Sequence[Table]) -> None:
        pass


def training(model: nn.Module, rounds: int) -> dict[str, Any]:
    """Our loop relative to a plain one: seconds per step after the first."""
    ours, plain = copy.deepcopy(model), copy.deepcopy(model)
    config = FitConfig(epochs=1, lr=1e-4, optimizer="adamw", weight_decay=1e-4, schedule="none")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=1e-4)

    def with_fit() -> float:
        stamps = _Stamps()
        fit(ours, _Batches(), None, config, CPU, task=TASK, progress=stamps)
        return (stamps.times[-1] - stamps.times[0]) / (STEPS - 1)

    def with_a_loop() -> float:
        plain.train()
        times = []
        for x, labels in _Batches():
            functional.reset_net(plain)
            steps = x.unsqueeze(0).repeat(plain.T, 1, 1, 1, 1)
            loss = F.cross_entropy(plain.simulate(steps).mean(0), labels)  # type: ignore[operator]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            times.append(time.perf_counter())
        functional.reset_net(plain)
        return (times[-1] - times[0]) / (STEPS - 1)

    return ratio(with_a_loop, with_fit, rounds)


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("spiking_cost.json"))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"environment": describe_environment(CPU), "networks": {}}
    for ref, kwargs in NETWORKS.items():
        model = network(ref, kwargs)
        document["networks"][ref] = {
            "arguments": kwargs,
            "collecting": collecting(model, arguments.rounds),
            "peak bytes": {c: {n: memory(model, c, n) for n in (1, 4, 16)} for c in ("rate", "rate+v")},
            "training step": training(model, max(arguments.rounds // 2, 4)),
        }
        print(ref, json.dumps(document["networks"][ref], indent=1), flush=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
