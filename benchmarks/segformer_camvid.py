"""SegFormer-B0 on CamVid at ratio 0.5: mIoU straight after pruning and after finetuning, and torch-pruning.

    PRUNE_DATA=DATA python benchmarks/segformer_camvid.py -o segformer_camvid.json --dense FOLDER/dense.safetensors

Training, data and finetuning are those of recipes/segformer-camvid.yaml, run by the library's own stages; the dense
network is trained first if the file does not exist. Every variant removes the same share of every width (scope
local) from the same dense network; the seed decides calibration images and the order and augmentation of the
finetuning. The best epoch is chosen on validation images; results are for the test images.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from prunecli.engine.evaluate import evaluate
from prunecli.engine.tasks.segmentation import SegmentationAccuracy
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.stages.prune import prune_stage
from prunecli.pipeline.stages.structural import PruneOutcome
from prunecli.pipeline.stages.train import train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.resolve import load_plan
from prunecli.recipe.schema import FinetuneStage, ModelSection, PruneStage, Recipe, TrainStage
from prunecli.report.table import Table
from prunecli.studies.torch_pruning import prune_uniform
from prunecli.surgery.removal.compensate import Compensation

VARIANTS: dict[str, Compensation] = {"prune, regression": "ls", "prune, uncompensated": "none"}
RECIPE = Path(__file__).parents[1] / "recipes" / "segformer-camvid.yaml"


class Silent:
    """Prints only warnings."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        print(f"warning: {text}", flush=True)

    def live(self, table: Table) -> None:
        pass

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        yield lambda done, text: None


def stage_of(recipe: Recipe, kind: type) -> Any:
    """The recipe's only stage of exactly this type."""
    return next(stage for stage in recipe.stages if type(stage) is kind)


def train_dense(recipe: Recipe, path: Path) -> None:
    """Trains as in the recipe and saves the network."""
    outcome = train_stage(Workspace(recipe, Silent()), stage_of(recipe, TrainStage), path)
    print(f"dense: kept epoch {outcome.chosen.epoch}", flush=True)


def straight_and_after(
    recipe: Recipe, dense: Path, seed: int, variant: str, folder: Path, params: dict[str, Any]
) -> dict[str, Any]:
    """One pruned network: mIoU straight after pruning, and after finetuning as in the recipe."""
    recipe = replace(recipe, seed=seed, model=ModelSection(weights=str(dense)))
    space = Workspace(recipe, Silent())
    before = space.model()
    row: dict[str, Any] = {"method": variant, "seed": seed}
    if variant == "torch-pruning":
        example, classes = space.inputs.example(), space.data().num_classes
        pruned = prune_uniform(before.model, example, params["ratio"], classes, round_to=8)
        space.parent, space.loaded = before, LoadedModel(pruned, copy.deepcopy(before.manifest), before.fixed_size)
    else:
        stage = replace(stage_of(recipe, PruneStage), compensate=VARIANTS[variant], params=params, latency_rounds=2)
        outcome = prune_stage(space, stage, folder / "pruned.safetensors")
        assert isinstance(outcome, PruneOutcome)
        row["verify_error"] = outcome.report.verify_error
    row |= figures(space, "straight_after")
    tuned = train_stage(space, stage_of(recipe, FinetuneStage), folder / "finetuned.safetensors")
    return row | {"kept_epoch": tuned.chosen.epoch} | figures(space, "finetuned")


def figures(space: Workspace, when: str) -> dict[str, Any]:
    """Test figures of the current network."""
    model, data = space.model().model, space.data()
    accuracy = evaluate(model, space.inputs.batches(data.test), space.device, task=space.judging.task())
    assert isinstance(accuracy, SegmentationAccuracy)
    return {
        when: {"miou": accuracy.miou, "pixel_accuracy": accuracy.pixel_accuracy, "loss": accuracy.loss},
        "params": parameter_count(model),
        "macs": count_macs(model.cpu(), space.inputs.example()).total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--dense", type=Path, required=True, help="trained dense network; created if it does not exist")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, "torch-pruning"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_plan(RECIPE).recipe
    if not arguments.dense.exists():
        train_dense(recipe, arguments.dense)
    params = {**stage_of(recipe, PruneStage).params, "scope": "local"}
    space = Workspace(replace(recipe, model=ModelSection(weights=str(arguments.dense))), Silent())
    data = space.data()
    assert data.train is not None and data.validation is not None
    document: dict[str, Any] = {
        "environment": describe_environment(),
        "images": {
            "training": len(data.training_split().labels),
            "validation": len(data.validation.labels),
            "test": len(data.test.labels),
        },
        "recipe": asdict(recipe),
        "prune_params": params,
        "before": figures(space, "dense"),
        "training": [step.figures for step in space.model().manifest.history],
        "runs": [],
    }
    print(json.dumps(document["before"]), flush=True)
    for seed in arguments.seeds:
        for variant in arguments.variants or [*VARIANTS, "torch-pruning"]:
            with tempfile.TemporaryDirectory() as folder:
                row = straight_and_after(recipe, arguments.dense, seed, variant, Path(folder), params)
            document["runs"].append(row)
            print(json.dumps(row), flush=True)
            arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
