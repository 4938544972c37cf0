"""Criteria on networks of several seeds: trains the networks, and leaves the rest to `prune compare --methods`.

    PRUNE_DATA=DATA python benchmarks/criteria.py vgg9 --folder FOLDER -o benchmarks/results --ratios 0.5
    python benchmarks/criteria.py --tables benchmarks/results/criteria_vgg9_*.json

`importance_lm.py` does the same for language models.

A network is trained for each seed. For every ratio and kind of compensation, each method prunes each network to as many
parameters as there are when every layer loses that share of its channels, and trains it for as many steps on the same
batches. Figures are those of the test data. What is finished is kept: the same command continues.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunecli.cli.output import Output
from prunecli.pipeline.resumption import is_unfinished
from prunecli.pipeline.stages.train import train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, FinetuneStage, ModelSection, PruneStage, Recipe, TrainStage
from prunecli.report.contest import Contest, read_contest
from prunecli.report.contest_tables import contest_tables
from prunecli.studies.contest import ContestSettings, run_contest

COMPENSATIONS = ("none", "ls")


@dataclass(frozen=True)
class Setting:
    """Networks, how they are trained, and what is compared on them."""

    ref: str
    data: DataSection
    train: TrainStage
    finetune: FinetuneStage
    methods: str
    ratios: tuple[float, ...]
    seeds: int
    steps: int
    kwargs: dict[str, Any] = field(default_factory=dict)
    calibration: int = 512
    images: int | None = None


_SPIKES = ("rate", "rate+v", "entropy", "variance", "singular", "l1", "bn-scale")
_SPIKE_METHODS = ",".join([*(f"spike:criterion={name}" for name in _SPIKES), "taylor", "activation"])
SETTINGS = {
    "vgg9": Setting(
        "spiking:vgg9",
        DataSection(name="mnist", image_size=32, batch_size=64),
        TrainStage(epochs=1, lr=2e-3, optimizer="adamw", weight_decay=1e-4),
        FinetuneStage(lr=1e-3, optimizer="adamw", weight_decay=1e-4, schedule="constant"),
        _SPIKE_METHODS,
        (0.3, 0.5, 0.75),
        3,
        80,
        {"width": 0.125},
        images=2000,
    ),
    "spikformer": Setting(
        "spiking:spikformer-2-64",
        DataSection(name="mnist", image_size=16, batch_size=64),
        TrainStage(epochs=2, lr=2e-3, optimizer="adamw", weight_decay=1e-4),
        FinetuneStage(lr=1e-3, optimizer="adamw", weight_decay=1e-4, schedule="constant"),
        _SPIKE_METHODS,
        (0.3, 0.5, 0.75),
        3,
        80,
        images=2000,
    ),
    "vit": Setting(
        "timm:vit_tiny_r_s16_p8_224",
        DataSection(name="cluttered-mnist", batch_size=32),
        TrainStage(epochs=2, optimizer="adamw", lr=2e-3, weight_decay=0.05, warmup_epochs=1, clip_grad=1.0),
        FinetuneStage(lr=5e-4, optimizer="adamw", weight_decay=0.05, clip_grad=1.0, schedule="constant"),
        "l1,taylor,obs-greedy,best",
        (0.5,),
        2,
        80,
        {"img_size": 48, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4},
        images=2000,
    ),
    "digits": Setting(
        "cifar:resnet20",
        DataSection(name="digits"),
        TrainStage(epochs=6, lr=0.05),
        FinetuneStage(lr=0.005),
        "fisher,fisher:normalise=none,taylor,taylor:normalise=none,obs,activation,l1",
        (0.5,),
        5,
        40,
    ),
}


def base(setting: Setting, seed: int, path: Path) -> None:
    """Trains the network of a seed, unless it is there."""
    if path.is_file():
        return
    model = ModelSection(ref=setting.ref, kwargs=setting.kwargs)
    space = Workspace(Recipe(model=model, data=setting.data, seed=seed), Output(), resume=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    train_stage(space, setting.train, path)


def contest(
    setting: Setting, networks: list[Path], ratio: float, compensation: str, methods: str, out: Path
) -> Contest:
    """The report of one ratio and one kind of compensation."""
    if out.is_file() and not is_unfinished(out):
        return read_contest(out)
    command = f"python benchmarks/criteria.py {' '.join(sys.argv[1:])}"
    spaces = [
        Workspace(Recipe(model=ModelSection(weights=str(path)), data=setting.data), Output(), command, resume=True)
        for path in networks
    ]
    settings = ContestSettings(
        methods, ratio, seeds=len(networks), recover=setting.steps, split="test", images=setting.images
    )
    prune = PruneStage(
        params={"round_to": 1},
        compensate=compensation,  # type: ignore[arg-type]
        calibration_images=setting.calibration,
    )
    return run_contest(spaces, settings, prune, setting.finetune, out)


def tables(paths: list[Path]) -> None:
    """Prints the tables of docs/benchmarks.md."""
    for path in paths:
        report = read_contest(path)
        kept = f"{100 * report.target_share:.1f} % of the parameters"
        print(f"\n**{path.stem}**: compensation {report.settings['prune']['compensate']}, {kept}\n")  # type: ignore[index,call-overload]
        for table in contest_tables(report):
            print(table.to_markdown())
        print("\n".join(f"- {line}" for line in report.verdict))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=SETTINGS)
    parser.add_argument("--folder", type=Path, default=Path("bases"), help="of the trained networks")
    parser.add_argument("-o", "--out", type=Path, default=Path("."), help="folder of the reports")
    parser.add_argument("--ratios", type=float, nargs="+")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--methods")
    parser.add_argument("--compensations", nargs="+", choices=(*COMPENSATIONS, "bias", "auto"), default=COMPENSATIONS)
    parser.add_argument("--tables", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.tables:
        tables(arguments.tables)
        return
    torch.set_num_threads(1)
    setting = SETTINGS[arguments.network]
    seeds = range(arguments.seeds or setting.seeds)
    networks = [arguments.folder / f"{arguments.network}-{seed}.safetensors" for seed in seeds]
    for seed, path in zip(seeds, networks, strict=True):
        base(setting, seed, path)
    written = []
    for ratio in arguments.ratios or setting.ratios:
        for compensation in arguments.compensations:
            written.append(arguments.out / f"criteria_{arguments.network}_{ratio:g}_{compensation}.json")
            contest(setting, networks, ratio, compensation, arguments.methods or setting.methods, written[-1])
    tables(written)


if __name__ == "__main__":
    main()
