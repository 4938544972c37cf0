"""What `prune spike` saves, what its scores say, and how criteria differ in what they leave, on MNIST.

    PRUNE_DATA=DATA python benchmarks/spiking_criteria.py vgg9 --bases FOLDER -o benchmarks/results/spiking_vgg9.json
    PRUNE_DATA=DATA python benchmarks/spiking_criteria.py spikformer --bases FOLDER \\
        -o benchmarks/results/spiking_spikformer.json
    python benchmarks/spiking_criteria.py --tables benchmarks/results/spiking_vgg9.json \\
        benchmarks/results/spiking_spikformer.json

Three networks of each kind, a VGG-9 and a small Spikformer, are trained on 20,000 images from other seeds. Costs are
those of networks pruned by rate. "noise" scores on random inputs instead of training images. "size" is what is left at
ratio 0.5 after repair, which differs between criteria because all layers compete; "ranks" is the rank correlation of a
channel's rate with its potential, and with its rate on random inputs. What the output file already has is not measured
again.

Criteria are compared by `benchmarks/criteria.py` (vgg9, spikformer), at equal parameters. The stored results have
"cells" from before that: top-1 on the first 2,000 test images at equal ratios, straight after removal, after
recalibrating batch normalisation, after regression and recalibration (the default), and after a short finetuning on
5,120 training images. `--tables` still prints them.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunecli.criteria.base import Calibration
from prunecli.criteria.spike import spike
from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.tasks.index import task_of
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.energy import profile
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import time_paired
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import load_file, load_reference, save
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm
from prunecli.surgery.tracing.trace import trace

CPU = torch.device("cpu")
SEEDS = (0, 1, 2)
RATIOS = (0.3, 0.5, 0.75)
SPIKES = ("rate", "rate+v", "entropy", "variance", "singular")
CRITERIA = (*SPIKES, "taylor", "activation", "l1", "bn-scale", "random")
TEST, TRAIN, CALIBRATION, FINETUNE = 2000, 20_000, 512, 5120


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained."""

    ref: str
    kwargs: dict[str, Any]
    size: int
    epochs: int
    lr: float


SETTINGS = {
    "vgg9": Setting("spiking:vgg9", {"width": 0.125}, 32, 3, 2e-3),
    "spikformer": Setting("spiking:spikformer-2-64", {}, 16, 4, 2e-3),
}


class Bench:
    """Data and one trained network for each seed."""

    def __init__(self, name: str, bases: Path) -> None:
        self.setting = SETTINGS[name]
        self.name, self._bases = name, bases
        data = load_data("mnist")
        self.task = task_of(data)
        size = self.setting.size
        self.preprocessing = Preprocessing((1, size, size), data.mean, data.std)
        chosen = np.sort(np.random.default_rng(0).permutation(len(data.training_split().labels))[:TRAIN])
        self._train = data.training_split().subset(chosen)
        # Loaded once: this benchmark is about networks, not image loading.
        self.test = list(evaluation_batches(data.test.subset(np.arange(TEST)), self.preprocessing, 256))
        self.example = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))

    def calibration(self, seed: int) -> list[Any]:
        """Batches of training images with labels."""
        return list(CalibrationBatches(self._train, self.preprocessing, CALIBRATION, 128, seed=seed).labelled)

    def base(self, seed: int) -> nn.Module:
        """The trained network of a seed, from the folder of bases or newly trained."""
        path = self._bases / f"{self.name}-{seed}.safetensors"
        if not path.is_file():
            torch.manual_seed(seed)
            loaded = load_reference(self.setting.ref, num_classes=10, in_chans=1, **self.setting.kwargs)
            self._fit(loaded.model, self._train, self.setting.epochs, self.setting.lr, seed, "cosine")
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, loaded.model, loaded.manifest)
        return load_file(path).model

    def random_images(self, seed: int) -> torch.Tensor:
        """Random inputs in place of images."""
        return torch.randn(32, *self.example.shape[1:], generator=torch.Generator().manual_seed(seed))

    def finetuned(self, model: nn.Module, seed: int) -> nn.Module:
        """A copy after the short finetuning."""
        tuned = copy.deepcopy(model)
        some = self._train.subset(np.sort(np.random.default_rng(seed).permutation(TRAIN)[:FINETUNE]))
        self._fit(tuned, some, 1, self.setting.lr / 2, seed, "none")
        return tuned

    def _fit(self, model: nn.Module, split: Any, epochs: int, lr: float, seed: int, schedule: str) -> None:
        batches = training_batches(split, self.preprocessing, Augmentation(flip=False), 64, seed=seed)
        config = FitConfig(epochs=epochs, lr=lr, optimizer="adamw", weight_decay=1e-4, schedule=schedule)
        fit(model, batches, None, config, CPU, task=self.task, seed=seed)

    def top1(self, model: nn.Module) -> float:
        """Accuracy on the test images, in per cent."""
        return evaluate(model, self.test, CPU).top1

    def pruned(
        self, model: nn.Module, criterion: str, ratio: float, seed: int, data: list[Any], *, repaired: bool
    ) -> nn.Module:
        """`model` without `ratio` of its channels."""
        other = criterion in ("taylor", "activation")
        params: StructuralParams = (
            get_method("spike").params(ratio=ratio)
            if other
            else get_method("spike").params(ratio=ratio, criterion=criterion)
        )  # type: ignore[arg-type]
        request = PruneRequest(
            method=criterion if other else "spike",
            params=params,
            example_inputs=self.example,
            seed=seed,
            calibration=data,
            compensation="ls" if repaired else "none",
            recalibrate=repaired,
        )
        return prune_structural(model, request).model


def cost(bench: Bench, seed: int, ratio: float) -> dict[str, Any]:
    """What removal with the default criterion saves."""
    base, data = bench.base(seed), bench.calibration(seed)
    small = bench.finetuned(bench.pruned(base, "rate", ratio, seed, data, repaired=True), seed)
    before, after = (profile(model, bench.test[:1]) for model in (base, small))
    saved: dict[str, Any] = {
        "params": parameter_count(small) / parameter_count(base),
        "synops": after.synops / before.synops,
        "energy": after.energy_nj / before.energy_nj,
        "firing rate": after.firing_rate / before.firing_rate,
    }
    for images in (1, 64):
        inputs = torch.randn(images, *bench.example.shape[1:], generator=torch.Generator().manual_seed(0))
        timing = time_paired([base, small], [inputs, inputs], rounds=30)
        saved[f"latency {images}"] = (timing.ratios[1], timing.ratio_intervals[1])
    return saved


def noise(bench: Bench, seed: int, criterion: str) -> dict[str, float]:
    """Accuracy at ratio 0.5 when channels are scored on random inputs, with and without recalibration."""
    base = bench.base(seed)
    removed = bench.pruned(base, criterion, 0.5, seed, [bench.random_images(seed)], repaired=False)
    accuracies = {"removed": bench.top1(removed)}
    recalibrate_batchnorm(removed, [images for images, _ in bench.calibration(seed)])
    accuracies["recalibrated"] = bench.top1(removed)
    return accuracies


def size(bench: Bench, seed: int, criterion: str) -> dict[str, float]:
    """Remaining parameters, MACs and synaptic operations at ratio 0.5, repaired but not finetuned."""
    base = bench.base(seed)
    small = bench.pruned(base, criterion, 0.5, seed, bench.calibration(seed), repaired=True)
    before, after = (profile(model, bench.test[:1]).synops for model in (base, small))
    return {
        "params": parameter_count(small) / parameter_count(base),
        "macs": count_macs(small, bench.example).total / count_macs(base, bench.example).total,
        "synops": after / before,
        "repaired": bench.top1(small),
    }


def ranks(bench: Bench, seed: int) -> dict[str, float]:
    """Rank correlations between scores of a layer's channels, mean over layers, and means of rate and potential."""
    base = bench.base(seed)
    images = [batch for batch, _ in bench.calibration(seed)]
    groups = trace(base, bench.example).groups

    def scores(criterion: str, batches: list[torch.Tensor]) -> list[torch.Tensor]:
        by_group = spike(base, groups, Calibration(batches=batches, options={"criterion": criterion}))
        return [by_group[group.name] for group in groups if isinstance(by_group[group.name], torch.Tensor)]  # type: ignore[misc]

    rates, both = scores("rate", images), scores("rate+v", images)
    random = scores("rate", [bench.random_images(seed)])
    potentials = [total - rate for total, rate in zip(both, rates, strict=True)]
    return {
        "rate": statistics.mean(float(layer.mean()) for layer in rates),
        "potential": statistics.mean(float(layer.mean()) for layer in potentials),
        "rate, potential": _correlation(rates, potentials),
        "rate, rate+v": _correlation(rates, both),
        "rate, rate on random inputs": _correlation(rates, random),
    }


def _correlation(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return statistics.mean(
        float(torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1])
        for a, b in zip(first, second, strict=True)
    )


def measure(name: str, bases: Path, out: Path, criteria: Sequence[str] = CRITERIA) -> None:
    """Measures every cell that the file does not have yet."""
    torch.set_num_threads(1)
    bench = Bench(name, bases)
    document = json.loads(out.read_text()) if out.is_file() else {}
    document = {kind: {} for kind in ("base", "cells", "cost", "noise", "size", "ranks")} | document
    document |= {"network": name, "setting": vars(bench.setting), "environment": describe_environment(CPU)}

    def keep(kind: str, key: str, make: Any) -> None:
        if key not in document[kind]:
            document[kind][key] = make()
            out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            print(kind, key, document[kind][key], flush=True)

    for seed in SEEDS:
        keep("base", f"{seed}", lambda seed=seed: bench.top1(bench.base(seed)))
    for seed in SEEDS:
        for ratio in (0.5, 0.75, 0.3):
            keep("cost", f"{ratio} {seed}", lambda r=ratio, s=seed: cost(bench, s, r))
        keep("ranks", f"{seed}", lambda s=seed: ranks(bench, s))
        for criterion in criteria:
            keep("size", f"{criterion} {seed}", lambda c=criterion, s=seed: size(bench, s, c))
        for criterion in ("rate", "rate+v"):
            keep("noise", f"{criterion} {seed}", lambda c=criterion, s=seed: noise(bench, s, c))


def tables(paths: list[Path]) -> None:
    """Prints the tables of docs/benchmarks.md."""
    for path in paths:
        document = json.loads(path.read_text())
        print(f"\n### {document['network']}: trained {_spread(list(document['base'].values()))} %\n")
        for ratio in RATIOS:
            columns = ("removed", "recalibrated", "repaired", "finetuned")
            _table(document["cells"], f"{ratio * 100:.0f} % removed", "{} " + str(ratio), columns)
        _table(document.get("size", {}), "50 % removed, what remains", "{}", ("params", "macs", "synops"), digits=3)
        print("| ahead of random, mean of the ratios | repaired | finetuned |\n|---|---:|---:|")
        for criterion in CRITERIA:
            if f"{criterion} {RATIOS[0]} {SEEDS[-1]}" in document["cells"] and criterion != "random":
                ahead = [_ahead(document, criterion, column) for column in ("repaired", "finetuned")]
                print(f"| {criterion} | " + " | ".join(ahead) + " |")
        print()
        _table(document["noise"], "50 % removed, scored on random inputs", "{}", ("removed", "recalibrated"))
        _costs(document["cost"])
        figures = list(document.get("ranks", {}).values())
        print({key: _spread([row[key] for row in figures], 2) for key in (figures[0] if figures else ())})


_TITLES = {
    "removed": "straight after",
    "repaired": "repaired (default)",
    "params": "parameters",
    "macs": "MACs",
    "synops": "SynOps",
}


def _table(cells: dict[str, Any], title: str, key: str, columns: Sequence[str], digits: int = 1) -> None:
    print(
        f"| {title} | "
        + " | ".join(_TITLES.get(column, column) for column in columns)
        + " |\n|---|"
        + "---:|" * len(columns)
    )
    for criterion in CRITERIA:
        rows = [cells[name] for seed in SEEDS if (name := f"{key.format(criterion)} {seed}") in cells]
        if rows:
            row = [_spread([entry[column] for entry in rows], digits) for column in columns]
            print(
                f"| {criterion} | " + " | ".join(row) + (" |" if len(rows) == len(SEEDS) else f" | ({len(rows)} seeds)")
            )
    print()


def _ahead(document: dict[str, Any], criterion: str, column: str) -> str:
    """Points ahead of random removal from the same networks; the deviation is over seeds."""
    cells = document["cells"]
    return _spread([
        statistics.mean(
            cells[f"{criterion} {ratio} {seed}"][column] - cells[f"random {ratio} {seed}"][column] for ratio in RATIOS
        )
        for seed in SEEDS
    ])  # fmt: skip


def _costs(costs: dict[str, Any]) -> None:
    names = {"params": "parameters", "synops": "SynOps", "energy": "energy"}
    times = {"latency 1": "latency, 1 image", "latency 64": "latency, 64 images"}
    print("| rate, removed | " + " | ".join((names | times).values()) + " |\n|---|---:|---:|---:|---:|---:|")
    for ratio in RATIOS:
        rows = [costs[f"{ratio} {seed}"] for seed in SEEDS if f"{ratio} {seed}" in costs]
        if rows:
            row = [_spread([entry[name] for entry in rows], 3) for name in names]
            row += [_spread([entry[name][0] for entry in rows], 2) for name in times]
            print(f"| {ratio * 100:.0f} % | " + " | ".join(row) + " |")
    print()


def _spread(values: list[float], digits: int = 1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=SETTINGS)
    parser.add_argument("--bases", type=Path, default=Path("bases"))
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--tables", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.tables:
        tables(arguments.tables)
    else:
        measure(
            arguments.network,
            arguments.bases,
            arguments.out or Path(f"spiking_{arguments.network}.json"),
            arguments.criteria,
        )
