"""MobileNetV2 on a sample of 167 ImageNet images, and torch-pruning: straight after pruning and after finetuning.

    PRUNE_DATA=DATA python benchmarks/mobilenetv2_imagenet.py DATA/weights/mobilenet_v2_torchvision_from_coral.safetensors \\
        -o mobilenetv2_imagenet.json

The sample has one image for each of 167 classes. A seeded permutation splits it: 83 images for calibration and
finetuning, 84 held out for testing. The classes of the held-out images do not occur in the finetuning images, so
labels would teach the wrong thing: finetuning is only by distillation from the dense network. Nothing is chosen on the
held-out images; the last epoch counts.

The weights come from TensorFlow: pixels in -1..1, and padding at the bottom and right before each convolution of
stride 2. Batch normalisation has been folded into the convolutions; statistics of the calibration images, and weights
that undo them, are put back in. This does not change the output, and recalibration and finetuning work as on other networks.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.data.catalog import load_data
from prunecli.data.loader import evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import Split
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.tasks.index import task_of
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import load_file
from prunecli.studies.torch_pruning import prune_uniform
from prunecli.surgery.removal.compensate import Compensation

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing((3, 224, 224), HALF, HALF, "bilinear", 0.875)
OURS: dict[str, tuple[Compensation, bool | None]] = {
    "prune, no repair": ("none", False),
    "prune, recalibration alone": ("none", True),
    "prune, bias": ("bias", False),
    "prune, regression": ("ls", False),
    "prune, regression and recalibration": ("ls", True),
    "prune, reconstruction": ("reconstruct", False),
    "prune, reconstruction and recalibration": ("reconstruct", True),
    "prune, whichever is best": ("auto", None),
}
BEST = "prune best"
"""Widths by what layers cost on trial, with as many MACs as when all lose the same share."""
TORCH_PRUNING = "torch-pruning"
_CHOSEN = "prune, whichever is best"
METHODS = (*OURS, BEST, TORCH_PRUNING)
FINETUNED = ("prune, recalibration alone", "prune, regression and recalibration", TORCH_PRUNING)


def dense_network(weights: Path) -> nn.Module:
    """The network with TensorFlow's padding before convolutions of stride 2."""
    model = load_file(weights, "torchvision:mobilenet_v2").model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                setattr(module, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), child))
    return model.eval()


def unfold(model: nn.Module, batches: list[Tensor]) -> None:
    """Gives batch normalisations the statistics of `batches`, and weights that leave the output unchanged."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[nn.Module, list[Tensor]] = {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        part = torch.stack(
            [x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), torch.full_like(x[0, :, 0, 0], x[:, 0].numel())]
        )
        sums.setdefault(module, []).append(part)

    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    with torch.no_grad():
        for batch in batches:
            model(batch)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            total, squares, count = torch.stack(sums[layer]).sum(0)
            mean = total / count
            variance = (squares / count - mean.square()).clamp(min=1e-6)
            assert layer.running_mean is not None and layer.running_var is not None
            scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
            layer.bias += (scale * (mean - layer.running_mean)).float()
            layer.weight.copy_(scale * (variance + layer.eps).sqrt())
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)


def wilson(hits: float, total: int) -> tuple[float, float]:
    """95 % interval of a share, in percent."""
    z, p = 1.96, hits / total
    middle, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return 100 * (middle - half) / (1 + z * z / total), 100 * (middle + half) / (1 + z * z / total)


def pruned_network(model: nn.Module, name: str, ratio: float, calibration: Any) -> nn.Module:
    example = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    if name == TORCH_PRUNING:
        stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        return prune_uniform(model, example, ratio, 1000, keep=(stem,))
    compensation, recalibrate = OURS[_CHOSEN if name == BEST else name]
    uniform: dict[str, Any] = {"ratio": ratio, "scope": "local"}
    if name == BEST:
        least = prune_structural(
            model,
            PruneRequest(method="l1", params=StructuralParams(**uniform, round_to=1), example_inputs=example),
        )
        uniform = {"macs": least.report.macs_after.total / least.report.macs_before.total}
    method = "best" if name == BEST else "l1"
    request = PruneRequest(
        method=method,
        params=get_structural(method).params_class(**uniform, round_to=1),
        example_inputs=example,
        calibration=calibration,
        compensation=compensation,
        recalibrate=recalibrate,
    )
    return prune_structural(model, request).model


def halves(split: Split, seed: int, fold: int = 0) -> tuple[Split, Split]:
    """Images that are known and held out; the other way round in fold 1."""
    order = np.random.default_rng(seed).permutation(len(split.labels))
    cut = len(order) // 2
    first, second = (split.subset(np.sort(part)) for part in (order[:cut], order[cut:]))
    return (second, first) if fold else (first, second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--folds", type=int, default=1, choices=(1, 2), help="2: judge all images, by cross-fitting")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--finetune-seeds", type=int, nargs="*", default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("folder:imagenet_sample")
    images = data.test
    config = FitConfig(epochs=arguments.epochs, lr=arguments.lr, weight_decay=4e-5)
    document: dict[str, Any] = {
        "environment": describe_environment(),
        "images": len(images.labels),
        "finetuning": {"epochs": config.epochs, "lr": config.lr, "schedule": "cosine", "batch_size": 16, "loss": "KL"},
        "before": [],
        "runs": [],
    }

    def note(kind: str, row: dict[str, Any]) -> None:
        document[kind].append(row)
        print(json.dumps(row), flush=True)
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    plan = [(s, fold, False) for s in arguments.seeds for fold in range(arguments.folds)]
    for seed, fold, finetune in plan + [(s, 0, True) for s in arguments.finetune_seeds]:
        known, held = halves(images, seed, fold)
        calibration = [batch for batch, _ in evaluation_batches(known, PREPROCESSING, 28)]
        held_out = list(evaluation_batches(held, PREPROCESSING, 28))
        model = dense_network(arguments.weights)
        folded = model(held_out[0][0])
        unfold(model, calibration)
        assert torch.allclose(folded, model(held_out[0][0]), rtol=1e-3, atol=1e-2)
        macs, params = count_macs(model, held_out[0][0][:1]).total, parameter_count(model)
        if not finetune:
            figures = evaluate(model, held_out, CPU)
            note("before", {"seed": seed, "fold": fold, "top1": figures.top1, "images": figures.images, "macs": macs})
        for ratio in arguments.ratios:
            for name in FINETUNED if finetune else arguments.methods:
                start = time.process_time()
                pruned = pruned_network(model, name, ratio, calibration)
                row = {"ratio": ratio, "method": name, "seed": seed, "when": "finetuned" if finetune else "straight"}
                row |= {"fold": fold, "seconds": time.process_time() - start}
                row["macs_ratio"] = count_macs(pruned, held_out[0][0][:1]).total / macs
                row["params_ratio"] = parameter_count(pruned) / params
                if finetune:
                    batches = training_batches(known, PREPROCESSING, Augmentation(), 16, seed=seed)
                    task = task_of(data)
                    distillation = Distillation(model, task, weight=1.0)
                    fit(pruned, batches, None, config, CPU, task=task, seed=seed, hooks=[distillation])
                accuracy = evaluate(pruned, held_out, CPU)
                hits = round(accuracy.top1 * accuracy.images / 100)
                note(
                    "runs",
                    row | {"top1": accuracy.top1, "interval": wilson(hits, accuracy.images), "top5": accuracy.top5},
                )
    for when in ("straight", "finetuned"):
        for ratio in arguments.ratios:
            for name in METHODS:
                values = [
                    r["top1"] for r in document["runs"] if (r["when"], r["ratio"], r["method"]) == (when, ratio, name)
                ]
                if values:
                    spread = statistics.stdev(values) if len(values) > 1 else 0.0
                    print(f"{when:10} {ratio} {name:36} {statistics.mean(values):6.2f} +- {spread:.2f}")


if __name__ == "__main__":
    main()
