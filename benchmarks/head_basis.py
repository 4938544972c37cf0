"""A small ViT on cluttered digits without half of its widths: repairs with and without mixing the dimensions of heads.

    PRUNE_DATA=DATA python benchmarks/head_basis.py vit.safetensors -o head_basis.json
    python benchmarks/head_basis.py --table head_basis.json

`prune train timm:vit_tiny_r_s16_p8_224`, as recipes/vit-tiny-mnist.yaml does it, makes the network. The same share of
every width is removed, in blocks by the dimensions of heads. Seeds draw 512 calibration images, without labels. Top-1
on the first test images straight after.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import prunecli
from prunecli.cli.output import Output
from prunecli.data.loader import CalibrationBatches
from prunecli.engine.evaluate import evaluate
from prunecli.measure.environment import describe_environment
from prunecli.methods import repair_trials
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe

METHODS, REPAIRS = ("l1", "obs-greedy"), ("ls", "reconstruct")


def measure(weights: str, out: Path, ratio: float, seeds: int, images: int) -> None:
    """Every method and repair with every draw."""
    recipe = Recipe(model=ModelSection(weights=weights), data=DataSection(name="cluttered-mnist", batch_size=32))
    space = Workspace(recipe, Output("quiet"))
    network, example, cpu = space.model().model, space.inputs.example(), torch.device("cpu")
    split, preprocessing = space.data().training_split(), space.inputs.preprocessing()
    test = [batch for batch, _ in zip(space.inputs.batches(space.data().test), range(images // 32), strict=False)]
    document: dict[str, Any] = {"environment": describe_environment(), "ratio": ratio, "images": images // 32 * 32}
    document |= {"dense": evaluate(network, test, cpu).top1, "rows": []}
    for seed in range(seeds):
        calibration = list(CalibrationBatches(split, preprocessing, 512, 32, seed=seed))
        for method in METHODS:
            for repair in REPAIRS:
                for mixed in (False, True):
                    unmixed = mock.patch.object(repair_trials, "concentrated", lambda dense, *_: (dense, frozenset()))
                    settings: dict[str, Any] = {"ratio": ratio, "scope": "local", "compensate": repair}
                    if not mixed:
                        unmixed.start()
                    done = prunecli.prune(network, method, example_inputs=example, data=calibration, **settings)
                    mock.patch.stopall()
                    row = {"seed": seed, "method": method, "repair": repair, "mixed": mixed}
                    document["rows"].append(row | {"top1": evaluate(done.model, test, cpu).top1})
                    print(json.dumps(document["rows"][-1]), flush=True)
                    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def table(path: Path) -> None:
    """Prints the table of docs/repair.md."""
    document = json.loads(path.read_text(encoding="utf-8"))
    print("| | repair | as they are | mixed |\n|---|---|---:|---:|")
    for method in METHODS:
        for repair in REPAIRS:
            cells = []
            for mixed in (False, True):
                key = (method, repair, mixed)
                values = [r["top1"] for r in document["rows"] if (r["method"], r["repair"], r["mixed"]) == key]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
            print(f"| `{method}` | {repair} | {cells[0]} | {cells[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        table(arguments.table)
    else:
        measure(arguments.weights, arguments.out, arguments.ratio, arguments.seeds, arguments.images)


if __name__ == "__main__":
    main()
