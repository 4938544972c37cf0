"""A cost model of runs on several processes: what it is made of is measured on 1, 2 and 4 of them, and tested there.

    python benchmarks/scaling.py measure -o scaling.json [--rounds 3]
    python benchmarks/scaling.py predict scaling.json [--per-second 2500] [--parameters 25.6e6] [--batch 4096]

The model (docs/scaling.md):

    step(N)   = ceil(batch / N) / speed + update + exposed * reduce(N)
    reduce(N) = 2 (N - 1) / N * bytes / bandwidth + 2 (N - 1) * latency        on a ring of N processes
    score(N)  = ceil(batches / N) * batch / speed + reduce_float64(N)
    prune(N)  = trace + remove + verify + score(N)                             the first three do not scale
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from prunecli.measure.environment import describe_environment

WORLDS = (1, 2, 4)
SIZES = tuple(2**power for power in (10, 14, 18, 20, 22, 24))  # numbers in an all-reduce
CALLS = 12
GPUS = (1, 8, 16, 32, 64, 128, 256, 512)
PER_NODE = 8
RECIPE = """\
version: 1
description: The parts of a run, on several processes
model: {ref: "cifar:resnet20"}
data: {name: digits, batch_size: 64}
seed: 0
threads: 1
stages:
  - {stage: train, epochs: 4, lr: 0.05}
  - {stage: prune, method: taylor, params: {ratio: 0.5}}
  - {stage: eval, measure: [accuracy, params, macs]}
"""


def reduced(rank: int, world: int, port: int, path: str) -> None:
    """One process: times all-reduces of several sizes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    seconds: dict[int, float] = {}
    for size in SIZES:
        tensor, times = torch.ones(size), []
        for _ in range(CALLS):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - start)
        seconds[size] = median(times[2:])
    if rank == 0:
        Path(path).write_text(json.dumps(seconds), encoding="utf-8")
    dist.destroy_process_group()


def all_reduce(world: int, port: int) -> dict[str, Any]:
    """Seconds of an all-reduce by how many float32 there are, and the ring's latency and bandwidth that fit them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        mp.spawn(reduced, args=(world, port, str(path)), nprocs=world)
        seconds = {int(size): value for size, value in json.loads(path.read_text(encoding="utf-8")).items()}
    moved = np.array([2 * (world - 1) / world * 4 * size for size in seconds])
    times = np.array(list(seconds.values()))
    terms = np.stack([np.full_like(moved, 2 * (world - 1)), moved], axis=1)
    # Relative errors count alike: else the largest tensor would decide about the latency too.
    latency, per_byte = np.linalg.lstsq(terms / times[:, None], np.ones_like(times), rcond=None)[0]
    return {"seconds": seconds, "latency": float(latency), "bandwidth": float(1 / per_byte)}


def stages(world: int, recipe: Path, folder: Path) -> dict[str, float]:
    """Seconds of each stage of a run on that many processes, as its lines on stderr say."""
    # torchrun also starts more processes than there are cores, which --nproc refuses.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    command = [sys.executable, *torchrun, "-m", "prunecli", "run", str(recipe), "--out", str(folder)]
    starts: list[tuple[str, float]] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "stage " in line and "/" in line:
                starts.append((line.split(":")[-1].strip(), time.perf_counter()))
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    ends = [*[start for _, start in starts[1:]], time.perf_counter()]
    seconds = {name: end - start for (name, start), end in zip(starts, ends, strict=True)}
    log = next(folder.glob("*metrics*.jsonl"))
    epochs = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    known = [entry["seconds"] for entry in epochs if "seconds" in entry]
    return seconds | {"epoch": median(known[1:])}


def measure(rounds: int) -> dict[str, Any]:
    """Everything the model is made of, in interleaved rounds."""
    runs: dict[int, list[dict[str, float]]] = {world: [] for world in WORLDS}
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "parts.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        for number in range(rounds):
            for world in WORLDS:
                runs[world].append(stages(world, recipe, Path(place) / f"run-{number}-{world}"))
    ports = iter(range(29510, 29600))
    return {
        "environment": describe_environment(),
        "load_before": os.getloadavg()[0],
        "rounds": rounds,
        "all_reduce": {world: all_reduce(world, next(ports)) for world in WORLDS if world > 1},
        "runs": {world: {name: [run[name] for run in ran] for name in ran[0]} for world, ran in runs.items()},
    }


def ring(world: int, size: float, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of `size` bytes on a ring."""
    return 2 * (world - 1) / world * size / bandwidth + 2 * (world - 1) * latency


def nodes(world: int, size: float, inside: tuple[float, float], between: tuple[float, float]) -> float:
    """The same on nodes of eight: each sums its own, the nodes sum eighths, and every node spreads the result."""
    local = min(world, PER_NODE)
    seconds = ring(local, size, *inside)
    if world > local:
        seconds += ring(world // local, size / local, *between)
    return seconds


def predict(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """What the model says of training and scoring on GPUs."""
    inside, between = (arguments.inside * 1e9, 5e-6), (arguments.between * 1e9, 2e-5)
    rows: list[dict[str, float]] = []
    for world in GPUS:
        share = math.ceil(arguments.batch / world)
        compute = share / arguments.per_second
        reduce = nodes(world, 4 * arguments.parameters, inside, between)
        # Two thirds of a step are the backward pass, beside which gradients are sent.
        step = compute + max(reduce - compute * 2 / 3, 0.1 * reduce) if world > 1 else compute
        batches = math.ceil(arguments.calibration / arguments.calibration_batch)
        scoring = math.ceil(batches / world) * arguments.calibration_batch / arguments.per_second
        pruning = arguments.serial + scoring
        alone = arguments.batch / arguments.per_second
        rows.append(
            {
                "processes": world,
                "step_ms": 1000 * step,
                "efficiency": alone / (world * step),
                "scores_s": scoring,
                "prune_s": pruning,
                "prune_speedup": (arguments.serial + batches * arguments.calibration_batch / arguments.per_second)
                / pruning,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("-o", "--out", type=Path, required=True)
    measuring.add_argument("--rounds", type=int, default=3)
    predicting = verbs.add_parser("predict")
    for name, default in (
        ("per-second", 2500.0),  # samples a GPU trains on
        ("parameters", 25.6e6),
        ("batch", 4096.0),
        ("calibration", 4096.0),  # samples
        ("calibration-batch", 64.0),
        ("serial", 20.0),  # seconds to trace, remove and verify
        ("inside", 300.0),  # GB/s between the GPUs of a node
        ("between", 40.0),  # GB/s of a node's network
    ):
        predicting.add_argument(f"--{name}", type=float, default=default)
    arguments = parser.parse_args()
    if arguments.verb == "predict":
        print("\t".join(("processes", "step_ms", "efficiency", "scores_s", "prune_s", "prune_speedup")))
        for row in predict(arguments):
            print("\t".join(f"{value:.4g}" for value in row.values()))
        return
    arguments.out.write_text(json.dumps(measure(arguments.rounds), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
