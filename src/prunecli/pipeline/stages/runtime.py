"""Prune stages of methods that change how a network runs: apply, prove, and measure with and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from prunecli.checkpoint.manifest import as_json
from prunecli.copying import copied
from prunecli.engine.resources import resource_errors
from prunecli.errors import DataError, MethodError
from prunecli.inputs import call, cast_inputs, logits, map_tensors, repeat_sample, sample_count, take_samples
from prunecli.measure.counts import Macs, count_macs
from prunecli.measure.latency import PairedTiming
from prunecli.methods.registry import get_method
from prunecli.methods.runtime import Description, RuntimeMethod, get_runtime, recorded_change
from prunecli.models.loading import LoadedModel
from prunecli.models.scoring import has_best_class, network_in, scored
from prunecli.pipeline.timed import note_timings, timed_in_turns
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.schema import Metrics
from prunecli.report.table import Table
from prunecli.report.variant_tables import Variant, variant_table

_IMAGES_CHECKED = 4
_BOUND = 1e-4
"""Largest difference, relative to the features' size, that the order of additions in another batch size explains."""
_BATCH = 8
"""Images in a batch whose latency is measured, where the method does not say."""


@dataclass(frozen=True)
class RuntimeOutcome:
    """What a change came to.

    Attributes:
        path: The checkpoint.
        change: What the method decided.
        description: What the method says of it.
        variants: The network as it is, changed, and changed at random by the same amount if the method has that.
        timings: By batch size: the variants, timed in turns.
        limit: Speed-up if time were MACs and deciding were free.
        batch_difference: Largest difference between features of images alone and in a batch.
    """

    path: Path
    change: Any
    description: Description
    variants: tuple[Variant, ...]
    timings: dict[int, PairedTiming] = field(default_factory=dict)
    limit: float = 1.0
    batch_difference: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Everything."""
        return self.document()

    def document(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            "checkpoint": str(self.path),
            **self.description.document,
            "limit": self.limit,
            "batch_difference": self.batch_difference,
            "variants": [variant.document() for variant in self.variants],
            "latency": {
                str(batch): {
                    "milliseconds": [timing.median for timing in timing.timings],
                    "ratios": list(timing.ratios),
                    "ratio_intervals": [list(bounds) for bounds in timing.ratio_intervals],
                }
                for batch, timing in self.timings.items()
            },
        }

    def tables(self) -> Sequence[Table]:
        """The variants beside each other."""
        return [variant_table(self.variants, self.description.rows, self.timings, self.limit, self.batch_difference)]


def runtime_stage(space: Workspace, stage: PruneStage, out: Path) -> RuntimeOutcome:
    """Changes how the current network runs, compares, and saves it with the change in its manifest.

    Raises:
        MethodError: The network does not allow it, or the parameters make no sense.
    """
    loaded = space.model()
    params: Any = get_method(stage.method).params_class(**stage.params)
    method = get_runtime(stage.method)
    if space.untrained():
        space.sink.warn(f"{loaded.name} has random weights, so nothing but its latency means anything")
    recorded = recorded_change(loaded.manifest)
    if recorded is not None:
        raise MethodError(f"{loaded.name}: {recorded.method.done} already; start from the network without")
    model = loaded.model.to(space.device).eval()
    example: Any = cast_inputs(space.inputs.example(), space.device)
    batch = getattr(params, "batch", _BATCH)
    with space.inputs.running():
        change = method.plan(model, example, params, space.recipe.seed, _speedups(space, method, model, batch, stage))
        changes: dict[str, Any] = {"unpruned": None, "pruned": change}
        baseline = method.baseline(model, change, space.recipe.seed)
        if baseline is not None:
            changes["random"] = baseline
        difference = _batch_difference(space, method, model, change)
    model, example = model.cpu(), cast_inputs(example, "cpu")
    macs = {name: _macs(method, model, one, example) for name, one in changes.items()}
    description = method.describe(model, changes, example)
    variants = compare_changes(space, method, changes, macs)
    timings = {size: _timed(space, method, model, changes, stage, size) for size in dict.fromkeys((1, batch))}
    note_timings(space, list(timings.values()))
    compared_on = space.split("test") if space.data_name() is not None else None
    settings = {"method": stage.method, "params": as_json(dataclasses.asdict(params))}
    step = space.lineage.step("prune", settings, split=compared_on, split_name="test")
    manifest = method.record(loaded.manifest, stage.method, change)
    manifest = manifest.model_copy(update={"history": [*loaded.manifest.history, step]})
    with method.applied(model, change):
        path = space.lineage.finish(LoadedModel(model, manifest, loaded.fixed_size), out)
    space.parent = loaded
    limit = macs["unpruned"].total / max(list(macs.values())[-1].total, 1)
    return RuntimeOutcome(path, change, description, variants, timings, limit, difference)


def compare_changes(
    space: Workspace, method: RuntimeMethod, changes: Mapping[str, Any], macs: Mapping[str, Macs]
) -> tuple[Variant, ...]:
    """Accuracy, agreement and cosine under every change, from one pass over the images.

    Args:
        space: With the network and its data.
        method: What applies the changes.
        changes: By name; the first is the reference.
        macs: Of each.
    """
    if space.data_name() is None:
        space.sink.warn("no data set, so no accuracy: name one with --data")
        return tuple(Variant(name, macs[name].total, macs[name].uncounted) for name in changes)
    data, device, task = space.data(), space.device, space.judging.task()
    space.judging.check()
    if task.finds_boxes:
        raise MethodError(f"{space.model().name} is a detector, and what leaving tokens out does is judged by classes")
    classifier = space.judging.classifier(remember=True).to(device).eval()
    network = network_in(classifier)
    split = space.split("test")
    meters = {name: task.meter(device) for name in changes}
    agreeing, cosines, images = dict.fromkeys(changes, 0), dict.fromkeys(changes, 0.0), 0
    with (
        resource_errors(space.recipe.data.batch_size),
        space.sink.progress(f"{task.name} {data.name}", len(split.labels)) as advance,
        torch.inference_mode(),
    ):
        for inputs, labels in space.inputs.batches(split):
            inputs = map_tensors(inputs, lambda tensor: tensor.to(device))
            labels = map_tensors(labels, lambda tensor: tensor.to(device))
            reference = None
            for name, change in changes.items():
                with method.applied(network, change):
                    current = scored(classifier, inputs)
                reference = reference or current
                meters[name].update(current.scores.float(), labels)
                agreeing[name] += int((current.scores.argmax(1) == reference.scores.argmax(1)).sum())
                cosines[name] += float(F.cosine_similarity(current.features, reference.features, dim=1).sum())
            images += sample_count(inputs)
            advance(images, f"{images} images")
    space.report_bad()
    if not images:
        raise DataError(f"{data.name}: none of its images could be read")

    def metrics(name: str) -> Metrics | None:
        figures = meters[name].compute()
        return Metrics(**task.named(figures)) if figures is not None else None

    return tuple(
        Variant(
            name,
            macs[name].total,
            macs[name].uncounted,
            metrics(name),
            100 * agreeing[name] / images if has_best_class(classifier) else None,
            cosines[name] / images,
        )
        for name in changes
    )


def _macs(method: RuntimeMethod, model: nn.Module, change: Any, example: torch.Tensor) -> Macs:
    with method.applied(model, change):
        return count_macs(model, example)


def _batch_difference(space: Workspace, method: RuntimeMethod, model: nn.Module, change: Any) -> float:
    """How much features of an image depend on what else is in its batch: nothing but rounding may be left.

    Raises:
        MethodError: They do.
    """
    generator = torch.Generator().manual_seed(space.recipe.seed)
    example = cast_inputs(space.inputs.example(), space.device)
    images = map_tensors(example, lambda tensor: _several(tensor, generator))
    with method.applied(model, change), torch.no_grad():
        together = _features(call(model, map_tensors(images, lambda tensor: tensor.flip(0)))).flip(0)
        singles = [take_samples(images, index, index + 1) for index in range(_IMAGES_CHECKED)]
        alone = torch.cat([_features(call(model, image)) for image in singles])
    difference = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-12))
    if difference > _BOUND:
        raise MethodError(
            f"features of an image differ by {difference:.1e} with the batch it is in, so this network cannot be run "
            "that way; please report its architecture"
        )
    return difference


def _several(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random images in the place of one; whatever else a sample has is repeated."""
    if tensor.is_floating_point():
        return torch.randn(_IMAGES_CHECKED, *tensor.shape[1:], generator=generator).to(tensor)
    return tensor[:1].expand(_IMAGES_CHECKED, *tensor.shape[1:])


def _features(output: Any) -> torch.Tensor:
    """What a network says of each image: its features, where it compares images with texts, else its scores."""
    features = getattr(output, "image_embeds", None)
    return features if isinstance(features, torch.Tensor) else logits(output)


def _timed(
    space: Workspace, method: RuntimeMethod, model: nn.Module, changes: Mapping[str, Any], stage: PruneStage, batch: int
) -> PairedTiming:
    images = repeat_sample(space.inputs.example(), batch)
    networks = []
    for change in changes.values():
        with method.applied(model, change):
            networks.append(copied(model))
    return timed_in_turns(space, networks, images, stage.latency_rounds)


def _speedups(
    space: Workspace, method: RuntimeMethod, model: nn.Module, batch: int, stage: PruneStage
) -> Callable[[Any], float]:
    def speedup_of(change: Any) -> float:
        changes = {"unpruned": None, "pruned": change}
        return 1 / _timed(space, method, model, changes, stage, batch).ratios[1]

    return speedup_of
