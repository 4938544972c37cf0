"""Methods that prune while a network trains, beside methods that prune before: a spiking VGG-5 on digits.

    python benchmarks/masks_while_training.py -o benchmarks/results/masks_while_training.json
    python benchmarks/masks_while_training.py --table benchmarks/results/masks_while_training.json

Three networks are trained from different seeds. `unstructured` learns masks for 15 epochs and finetunes for 5;
`magnitude`, `snip` and `random-weights` mask the same share of connections at once (the sparsity that leaves it is
searched) and train for 20 epochs with the zeros held, at the same rate. `sca` trains for 15 epochs, closes channels in
the first 7, and finetunes for 5; `l1`, `spike` (rate), `taylor` and `random` are asked for the share of parameters
that it left, and train for 20. Epochs are chosen on validation images; figures are those of 360 test images. Epochs of
both methods are timed beside those of plain training, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prunecli.criteria.base import default_loss
from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches
from prunecli.data.preparation import Preprocessing
from prunecli.measure.environment import describe_environment
from prunecli.methods.sparse import SparseRequest, mask_weights
from prunecli.methods.sparse_params import SparseParams
from prunecli.models.loading import load_file
from prunecli.sparsity.connections import count_connections, wiring_of
from prunecli.sparsity.spike_masks import masked_spikes

SEEDS = (0, 1, 2)
CONNECTIONS = (0.1, 0.03, 0.01)
SIDE = 16
DATA = ("--data", "digits", "--image-size", str(SIDE), "--batch-size", "32")
NETWORK = ("spiking:vgg5", "--model-kwargs", "width=0.25", "--model-kwargs", f"image_size={SIDE}")
TRAINING = ("--optimizer", "adamw", "--weight-decay", "1e-4")
SEARCH, FINETUNE, RATE = 15, 5, 0.002
ONE_SHOT = ("magnitude", "snip", "random-weights")
STRUCTURAL = ("l1", "spike", "taylor", "random")
_STEPS = 12
"""Halvings of the interval of sparsities."""


def prune(*words: object, folder: Path) -> dict[str, Any]:
    """Runs the command line, and returns its JSON document."""
    command = [sys.executable, "-m", "prunecli", *map(str, words), "--json", "--force"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def figures_of(name: str, folder: Path) -> dict[str, float]:
    """Top-1, synaptic operations, parameters and connections of a checkpoint."""
    metrics = prune(
        "eval", name, *DATA, "--measure", "accuracy", "--measure", "energy", "--measure", "params", folder=folder
    )
    metrics = metrics["metrics"]
    network, example = load_file(folder / name).model, torch.rand(1, 1, SIDE, SIDE)
    wiring = wiring_of(network, example)
    counted = sum(count_connections(network, example, wiring, spikes=masked_spikes(network)).values())
    return {
        "top1": metrics["top1"],
        "synops": metrics["synops"],
        "params": metrics["params"],
        "connections": counted / sum(wiring.edges.values()),
    }


def sparsity_for(name: str, method: str, share: float, seed: int, folder: Path) -> float:
    """The sparsity at which a method leaves a share of the connections."""
    data = load_data("digits")
    preprocessing = Preprocessing((1, SIDE, SIDE), data.mean, data.std)
    calibration = CalibrationBatches(data.training_split(), preprocessing, 1024, 32, seed=seed).labelled
    example = torch.rand(1, 1, SIDE, SIDE)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        network = load_file(folder / name).model
        wiring = wiring_of(network, example)
        params = SparseParams(sparsity=middle)
        request = SparseRequest(
            method=method, params=params, example_inputs=example, seed=seed, calibration=calibration, loss=default_loss
        )
        mask_weights(network, request)
        left = sum(count_connections(network, example, wiring).values()) / sum(wiring.edges.values())
        low, high = (middle, high) if left > share else (low, middle)
    return high


def learned(seed: int, share: float, folder: Path) -> dict[str, Any]:
    """A cell of `unstructured`."""
    words = ("--epochs", SEARCH, "--finetune-epochs", FINETUNE, "--finetune-lr", RATE / 2, "--lr", RATE, *TRAINING)
    words = (*words, "--latency-rounds", 2, "--seed", seed, "--connections", share, "-o", "out.safetensors")
    prune("unstructured", "dense.safetensors", *DATA, *words, folder=folder)
    return {"method": "unstructured", "asked": share, **figures_of("out.safetensors", folder)}


def masks(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Cells of `unstructured` and the one-shot methods."""
    cells = []
    for share in CONNECTIONS:
        cells.append(learned(seed, share, folder))
        for method in ONE_SHOT:
            sparsity = sparsity_for("dense.safetensors", method, share, seed, folder)
            words = ("--sparsity", sparsity, "--seed", seed, "--latency-rounds", 2, "-o", "masked.safetensors")
            prune(method, "dense.safetensors", *DATA, *words, folder=folder)
            words = ("--epochs", SEARCH + FINETUNE, "--lr", RATE, *TRAINING, "--seed", seed, "-o", "out.safetensors")
            prune("finetune", "masked.safetensors", *DATA, *words, folder=folder)
            cells.append({"method": method, "asked": share, **figures_of("out.safetensors", folder)})
            print(seed, cells[-1], flush=True)
    return cells


def channels(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Cells of `sca` and the structural methods."""
    words = ("--epochs", SEARCH, "--prune-epochs", SEARCH // 2, "--connectivity", 0.5, "--lr", RATE, *TRAINING)
    words = (*words, "--finetune-epochs", FINETUNE, "--finetune-lr", RATE / 2, "--latency-rounds", 2, "--seed", seed)
    prune("sca", "dense.safetensors", *DATA, *words, "-o", "out.safetensors", folder=folder)
    cells = [{"method": "sca", **figures_of("out.safetensors", folder)}]
    dense = figures_of("dense.safetensors", folder)
    for method in STRUCTURAL:
        words = ("--params", round(cells[0]["params"] / dense["params"], 4), "--seed", seed, "--latency-rounds", 2)
        prune(method, "dense.safetensors", *DATA, *words, "--round-to", 1, "-o", "pruned.safetensors", folder=folder)
        words = ("--epochs", SEARCH + FINETUNE, "--lr", RATE, *TRAINING, "--seed", seed, "-o", "out.safetensors")
        prune("finetune", "pruned.safetensors", *DATA, *words, folder=folder)
        cells.append({"method": method, **figures_of("out.safetensors", folder)})
        print(seed, cells[-1], flush=True)
    return cells


def epoch_times(folder: Path) -> dict[str, list[float]]:
    """Seconds of epochs, by kind of training, measured in turns: two epochs each time, of which the second counts."""
    times: dict[str, list[float]] = {"plain": [], "unstructured": [], "sca": []}
    shared = (*DATA, "--epochs", 2, "--lr", RATE, *TRAINING, "-o", "timed.safetensors")
    for _ in range(5):
        for kind, own in times.items():
            verb = "finetune" if kind == "plain" else kind
            more = () if kind == "plain" else ("--latency-rounds", 2)
            command = [
                sys.executable,
                "-m",
                "prunecli",
                verb,
                "dense.safetensors",
                *map(str, (*shared, *more)),
                "--force",
            ]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            line = next(line for line in done.stderr.splitlines() if "epoch 2/2" in line)
            own.append(float(line.split(", ")[-1].split()[0]))
    return times


def measure(out: Path, seeds: Sequence[int], *, only_learned: bool) -> None:
    """Measures cells, and replaces those of the same seed and method in the file, or adds them."""
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"cells": []}
    result["environment"] = describe_environment(torch.device("cpu"))
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            words = ("--epochs", 15, "--lr", 0.003, *TRAINING, "--seed", seed, "-o", "dense.safetensors")
            prune("train", *NETWORK, *DATA, *words, folder=folder)
            if only_learned:
                cells = [learned(seed, share, folder) for share in CONNECTIONS]
            else:
                cells = [{"method": "dense", **figures_of("dense.safetensors", folder)}]
                cells += [*channels(seed, folder), *masks(seed, folder)]
                if "epoch_seconds" not in result:
                    result["epoch_seconds"] = epoch_times(folder)
        cells = [{"seed": seed, **cell} for cell in cells]
        new = {_key(cell) for cell in cells}
        result["cells"] = [cell for cell in result["cells"] if _key(cell) not in new] + cells
        out.write_text(json.dumps(result, indent=1) + "\n")


def _key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["seed"], cell["method"], cell.get("asked")


def show(path: Path) -> None:
    """Prints means and standard deviations over the seeds as tables."""
    result = json.loads(path.read_text())
    cells = result["cells"]
    keys = sorted({(cell.get("asked") or 2, cell["method"]) for cell in cells}, reverse=True)
    print("| connections | method | top-1 | synaptic operations | parameters |\n|---:|---|---:|---:|---:|")
    for asked, method in keys:
        own = [cell for cell in cells if cell["method"] == method and (cell.get("asked") or 2) == asked]
        top1 = [cell["top1"] for cell in own]
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        means = {key: statistics.mean(cell[key] for cell in own) for key in ("connections", "synops", "params")}
        print(
            f"| {100 * means['connections']:.1f} % | `{method}` | {statistics.mean(top1):.1f} ± {spread:.1f} | "
            f"{means['synops'] / 1e3:.1f}k | {means['params'] / 1e3:.1f}k |"
        )
    plain = statistics.median(result["epoch_seconds"]["plain"])
    for kind, seconds in result["epoch_seconds"].items():
        print(f"{kind}: {statistics.median(seconds) / plain:.2f} times a plain epoch ({len(seconds)} in turns)")


def main() -> None:
    """Measures, or shows a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only-learned", action="store_true", help="measure only unstructured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.out is not None:
        measure(arguments.out, arguments.seeds, only_learned=arguments.only_learned)
    show(arguments.table or arguments.out)


if __name__ == "__main__":
    main()
