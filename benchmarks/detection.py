"""SSDlite on digits in clutter, half of its channels removed, beside random choices, magnitudes and torch-pruning.

    PRUNE_DATA=DATA python benchmarks/detection.py --folder FOLDER -o benchmarks/results/detection_ssdlite.json
    python benchmarks/detection.py --table benchmarks/results/detection_ssdlite.json

For each of three seeds a network is trained from nothing on `mnist-boxes`. Every way of pruning starts from it and
removes half of the channels of every layer (`--scope local`), so all criteria give the same shapes. "+ ls" folds what
was removed into the rest and measures normalisations again; the others do neither. torch-pruning leaves the layers
alone that write boxes and scores; where that makes another size than ours, the row "at its size" is ours with as many
parameters. Figures are those of the first 500 test images, before and after the same 100 steps of training with the
batches of the seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import nn

import prunecli
from prunecli.cli.output import Output
from prunecli.copying import copied
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.inputs import call
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.pipeline.stages.train import train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe, TrainStage
from prunecli.studies.batches import FirstSteps

SEEDS, STEPS, CALIBRATION, IMAGES, RATIO = 3, 100, 256, 500, 0.5
MODEL = ModelSection("torchvision:ssdlite320_mobilenet_v3_large", kwargs={"image_size": 128})
DATA = DataSection("mnist-boxes", batch_size=16)
TRAINING = TrainStage(epochs=6, lr=2e-3, optimizer="adamw", warmup_epochs=1)
RECOVERY = FitConfig(epochs=1, lr=2e-4, optimizer="adamw", schedule="constant")
Prune = Callable[[nn.Module], nn.Module]


class Bench:
    """One trained network with its data."""

    def __init__(self, folder: Path, seed: int) -> None:
        path = folder / f"ssdlite-{seed}.safetensors"
        recipe = Recipe(model=MODEL, data=DATA, seed=seed)
        if not path.is_file():
            train_stage(Workspace(recipe, Output()), TRAINING, path)
        self.space = Workspace(dataclasses.replace(recipe, model=ModelSection(weights=str(path))), Output())
        self.dense = self.space.model().model
        self.task, self.loss = self.space.judging.task(), self.space.judging.loss()
        data = self.space.data()
        self._training, self._test, self._seed = data.training_split(), data.test.subset(np.arange(IMAGES)), seed
        self.calibration = list(self.space.inputs.calibration(self._training, CALIBRATION).labelled)
        self.example = self.space.inputs.example()

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Mean average precisions on test images."""
        batches = self.space.inputs.batches(self._test)
        found = evaluate(network, batches, self.space.device, task=self.task)
        return {"map50_95": found.map50_95, "map50": found.map50}

    def recovered(self, network: nn.Module) -> nn.Module:
        """The network after a little training."""
        batches = FirstSteps(self.space.inputs.training(self._training), STEPS, self._seed)
        fit(network, batches, None, RECOVERY, self.space.device, task=self.task, seed=self._seed)
        return network

    def ours(self, method: str, *, repaired: bool, **params: Any) -> Prune:
        """Pruning of the same share of every layer."""

        def prune(network: nn.Module) -> nn.Module:
            result = prunecli.prune(
                network, method, example_inputs=self.example, data=self.calibration, loss=self.loss,
                compensate="ls" if repaired else "none", recalibrate=repaired, seed=self._seed, scope="local",
                **(params or {"ratio": RATIO}),
            )  # fmt: skip
            model: nn.Module = result.model
            return model

        return prune

    def peer(self, network: nn.Module) -> nn.Module:
        """torch-pruning's group magnitudes; its example for torchvision's SSD leaves whole heads alone."""
        pruned: Any = copied(network).eval()
        heads = (pruned.head.classification_head, pruned.head.regression_head)
        with torch.enable_grad():
            pruner = torch_pruning.pruner.BasePruner(
                pruned, [self.example], torch_pruning.importance.GroupMagnitudeImportance(p=1), pruning_ratio=RATIO,
                ignored_layers=[block[-1] for head in heads for block in head.module_list],
                output_transform=lambda found: sum(one["boxes"].sum() + one["scores"].sum() for one in found),
            )  # fmt: skip
            pruner.step()
        with torch.no_grad():
            call(pruned, self.example)
        model: nn.Module = pruned
        return model


def entrants(bench: Bench) -> Iterator[tuple[str, Prune]]:
    """Name and function of every way of pruning."""
    yield "random", bench.ours("random", repaired=False)
    yield "l1", bench.ours("l1", repaired=False)
    yield "random + ls", bench.ours("random", repaired=True)
    yield "l1 + ls", bench.ours("l1", repaired=True)
    yield "taylor + ls", bench.ours("taylor", repaired=True)
    yield "torch-pruning", bench.peer

    def at_its_size(network: nn.Module) -> nn.Module:
        share = parameter_count(bench.peer(network)) / parameter_count(network)
        return bench.ours("l1", repaired=True, params=share)(network)

    yield "l1 + ls, at its size", at_its_size


def measure(folder: Path, out: Path) -> None:
    """Every way of pruning at every seed; what is in the file already is not measured again."""
    document: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"rows": [], "dense": []}
    document |= {"seeds": SEEDS, "steps": STEPS, "calibration": CALIBRATION, "images": IMAGES, "ratio": RATIO}
    for seed in range(SEEDS):
        bench = Bench(folder, seed)
        size, macs = parameter_count(bench.dense), count_macs(bench.dense, bench.example).total
        if not any(row["seed"] == seed for row in document["dense"]):
            document["dense"].append({"seed": seed, "params": size, "macs": macs, **bench.figures(bench.dense)})
        for way, prune in entrants(bench):
            if any((row["way"], row["seed"]) == (way, seed) for row in document["rows"]):
                continue
            row: dict[str, Any] = {"way": way, "seed": seed}
            start = time.perf_counter()
            try:
                network = prune(bench.dense)
                row |= {
                    "seconds": time.perf_counter() - start,
                    "params_left": parameter_count(network) / size,
                    "macs_left": count_macs(network, bench.example).total / macs,
                    "before": bench.figures(network),
                    "after": bench.figures(bench.recovered(network)),
                }
            except Exception as error:  # that it fails is a result
                row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            document["rows"].append(row)
            document["environment"] = describe_environment(torch.device("cpu"))
            out.write_text(json.dumps(document, indent=1) + "\n")
            print(json.dumps(row), flush=True)


def table(path: Path) -> None:
    """Markdown: mean and standard deviation over seeds."""
    document = json.loads(path.read_text())
    dense = [_spread([row[name] for row in document["dense"]]) for name in ("map50_95", "map50")]
    print(f"\ndense: mAP@50:95 {dense[0]}, mAP@50 {dense[1]}\n")
    print(f"| | parameters | MACs | mAP@50:95 | mAP@50 | mAP@50:95 after {document['steps']} steps | mAP@50 |")
    print("|---|---|---|---|---|---|---|")
    for way in dict.fromkeys(row["way"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["way"] == way]
        if any("failed" in row for row in rows):
            print(f"| {way} | {next(row['failed'] for row in rows if 'failed' in row)} | | | | | |")
            continue
        shares = [statistics.mean(row[name] for row in rows) for name in ("params_left", "macs_left")]
        figures = [(when, name) for when in ("before", "after") for name in ("map50_95", "map50")]
        scores = " | ".join(_spread([row[when][name] for row in rows]) for when, name in figures)
        print(f"| {way} | {shares[0]:.1%} | {shares[1]:.1%} | {scores} |")


def _spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("detection"), help="of the trained networks")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of this result")
    arguments = parser.parse_args()
    if arguments.table is not None:
        table(arguments.table)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    measure(arguments.folder, (arguments.out or arguments.folder / "detection.json").absolute())


if __name__ == "__main__":
    main()
