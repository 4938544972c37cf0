"""The stage that leaves out tokens: apply, prove, and measure unpruned, pruned and random beside each other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.checkpoint.manifest import TokenSelection, as_json
from prunecli.engine.resources import resource_errors
from prunecli.errors import DataError, MethodError, RecipeError
from prunecli.inputs import Inputs, call, logits
from prunecli.measure.counts import Macs, count_macs
from prunecli.measure.latency import PairedTiming, time_paired
from prunecli.methods.params import TokenParams
from prunecli.methods.token import at_random, plan_selection
from prunecli.models.loading import LoadedModel
from prunecli.models.prompt_classifier import PromptClassifier, has_text_tower
from prunecli.pipeline.judging import judge_of, named_figures
from prunecli.pipeline.profiling import split_for
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.schema import Metrics
from prunecli.tokens.runtime import tokens_pruned
from prunecli.tokens.towers import Tower, find_tower, token_count

_CHECKED = 4
_BOUND = 1e-4
"""Largest difference, relative to the features' size, that the order of additions in another batch size explains."""


@dataclass(frozen=True)
class Variant:
    """One way to run the network, and what it gives.

    Attributes:
        name: "unpruned", "pruned" or "random".
        metrics: Accuracy or recalls on the images; None without data, or without classes.
        agreement: Share of the images, in percent, with the same best class, or caption, as unpruned.
        cosine: Mean cosine between its image features and the unpruned network's; of a network without a text tower
            between class scores.
        macs: Of one image.
    """

    name: str
    macs: Macs
    metrics: Metrics | None = None
    agreement: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class TokenOutcome:
    """What leaving out tokens came to.

    Attributes:
        path: The checkpoint.
        selection: Which tokens stay where.
        per_block: Tokens that each block gives to the next, unpruned and pruned.
        variants: Unpruned, pruned, and random at the same budget.
        timings: By batch size: unpruned, pruned and random, timed in turns.
        limit: Speed-up if time were MACs and choosing were free.
        batch_difference: Largest difference between features of images alone and in a batch.
    """

    path: Path
    selection: TokenSelection
    per_block: tuple[tuple[int, int], ...]
    variants: tuple[Variant, ...]
    timings: dict[int, PairedTiming] = field(default_factory=dict)
    limit: float = 1.0
    batch_difference: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            "checkpoint": str(self.path),
            "selection": self.selection.model_dump(mode="json"),
            "tokens_per_block": [list(pair) for pair in self.per_block],
            "limit": self.limit,
            "batch_difference": self.batch_difference,
            "variants": [
                {
                    "name": one.name,
                    "macs": one.macs.total,
                    "macs_uncounted": list(one.macs.uncounted),
                    "agreement": one.agreement,
                    "cosine": one.cosine,
                    **({} if one.metrics is None else one.metrics.model_dump(mode="json", exclude_defaults=True)),
                }
                for one in self.variants
            ],
            "latency": {
                str(batch): {
                    "milliseconds": [one.median for one in timing.timings],
                    "ratios": list(timing.ratios),
                    "ratio_intervals": [list(bounds) for bounds in timing.ratio_intervals],
                }
                for batch, timing in self.timings.items()
            },
        }


def token_stage(space: Workspace, stage: PruneStage, out: Path) -> TokenOutcome:
    """Leaves tokens out of the current network, compares, and saves it with the selection in its manifest.

    Raises:
        MethodError: The network has no tokens to leave out, or the budget makes no sense.
    """
    loaded = space.model()
    params = TokenParams(**stage.params)
    _check_stage(stage)
    if space.untrained():
        space.sink.warn(f"{loaded.name} has random weights, so nothing but its latency means anything")
    if loaded.manifest.tokens is not None:
        raise MethodError(f"{loaded.name}: its tokens are pruned already; start from the network without")
    model = loaded.model.to(space.device).eval()
    tower = find_tower(model)
    example = space.example().to(space.device)
    with space.running():
        tokens = token_count(model, tower, example)
    selection = plan_selection(params, tower, tokens, space.recipe.seed, _speedups(space, model, params, stage))
    baseline = at_random(selection, tower, space.recipe.seed)
    ways: dict[str, TokenSelection | None] = {"unpruned": None, "pruned": selection, "random": baseline}
    difference = _batch_difference(space, model, selection)
    macs = {name: count_macs(network, example.cpu()) for name, network in networks_of(model.cpu(), ways)}
    counts = [_per_block(network, tower, example.cpu()) for _, network in networks_of(model, ways)]
    per_block = tuple(zip(counts[0], counts[1], strict=True))
    variants = compare_ways(space, ways, macs)
    timings = {batch: _timed(space, model, ways, stage, batch) for batch in dict.fromkeys((1, params.batch))}
    step = space.step("prune", {"method": stage.method, "params": as_json(dataclasses.asdict(params))})
    manifest = loaded.manifest.model_copy(update={"tokens": selection, "history": [*loaded.manifest.history, step]})
    with tokens_pruned(model, selection):
        path = space.finish(LoadedModel(model, manifest, loaded.fixed_size), out)
    space.parent = loaded
    limit = macs["unpruned"].total / max(macs["random"].total, 1)
    return TokenOutcome(path, selection, per_block, variants, timings, limit, difference)


def _check_stage(stage: PruneStage) -> None:
    """What is for methods that remove channels is no help here.

    Raises:
        RecipeError: Some of it was given.
    """
    usual = PruneStage()
    for name in ("keep", "recalibrate", "compensate", "calibration_images", "epochs", "lr", "optimizer"):
        if getattr(stage, name) != getattr(usual, name):
            hint = "; the share of the tokens that stays is --keep of `prune token`, params.keep in a recipe"
            flag = name.replace("_", "-")
            raise RecipeError(f"--{flag} is for methods that remove channels" + (hint if name == "keep" else ""))


def networks_of(model: nn.Module, ways: dict[str, TokenSelection | None]) -> Iterator[tuple[str, nn.Module]]:
    """The network run in each way; one at a time, and as it was afterwards."""
    for name, selection in ways.items():
        with _running(model, selection):
            yield name, model


@contextmanager
def _running(model: nn.Module, selection: TokenSelection | None) -> Iterator[None]:
    with nullcontext() if selection is None else tokens_pruned(model, selection):
        yield


def compare_ways(
    space: Workspace, ways: dict[str, TokenSelection | None], macs: dict[str, Macs]
) -> tuple[Variant, ...]:
    """Accuracy, agreement and cosine of every way, from one pass over the images."""
    if space.data_name() is None:
        space.sink.warn("no data set, so no accuracy: name one with --data")
        return tuple(Variant(name, macs[name]) for name in ways)
    data, device = space.data(), space.device
    space.check_classes()
    classifier = space.classifier(remember=True).to(device).eval()
    towers = classifier.towers if isinstance(classifier, PromptClassifier) else classifier
    split = split_for(space, "test")
    judged = data.task != "unlabelled"
    meters = {name: judge_of(space).meter(device) for name in ways} if judged else {}
    agreed, alike, images = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), 0
    with (
        resource_errors(space.recipe.data.batch_size),
        space.sink.progress(f"tokens {data.name}", len(split.labels)) as advance,
        torch.inference_mode(),
    ):
        for batch, labels in space.batches(split):
            batch, labels = batch.to(device), labels.to(device)
            reference: tuple[Tensor, Tensor] | None = None
            for name, selection in ways.items():
                with _running(towers, selection):
                    features, scores = _features_and_scores(classifier, batch)
                reference = reference or (features, scores)
                if judged:
                    meters[name].update(scores.float(), labels)
                agreed[name] += int((scores.argmax(1) == reference[1].argmax(1)).sum())
                alike[name] += float(F.cosine_similarity(features, reference[0], dim=1).sum())
            images += len(labels)
            advance(images, f"{images} images")
    space.tell_bad()
    if not images:
        raise DataError(f"{data.name}: none of its images could be read")
    compared = isinstance(classifier, PromptClassifier) or not has_text_tower(towers)  # features have no best class
    return tuple(
        Variant(
            name,
            macs[name],
            Metrics(**named_figures(meters[name].compute(), data.class_names)) if judged else None,
            100 * agreed[name] / images if compared else None,
            alike[name] / images,
        )
        for name in ways
    )


def _features_and_scores(classifier: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(classifier, PromptClassifier):
        features = classifier.features(images)
        return features, classifier.scores(features)
    scores = logits(call(classifier, images))
    return scores, scores


def _per_block(model: nn.Module, tower: Tower, example: Inputs) -> list[int]:
    counts: list[int] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out: counts.append(out.shape[1]))
        for name in tower.blocks
    ]
    try:
        with torch.no_grad():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _batch_difference(space: Workspace, model: nn.Module, selection: TokenSelection) -> float:
    """How far features of an image depend on what else is in its batch: nothing but rounding may be left.

    Raises:
        MethodError: They do.
    """
    generator = torch.Generator().manual_seed(space.recipe.seed)
    images = torch.randn(_CHECKED, *space.input_shape(), generator=generator).to(space.device)
    with tokens_pruned(model, selection), torch.no_grad():
        together = logits(call(model, images.flip(0))).flip(0)
        alone = torch.cat([logits(call(model, image.unsqueeze(0))) for image in images])
    difference = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-12))
    if difference > _BOUND:
        raise MethodError(
            f"features of an image differ by {difference:.1e} with the batch it is in, so this network cannot be run "
            "with fewer tokens; please report its architecture"
        )
    return difference


def _timed(
    space: Workspace, model: nn.Module, ways: dict[str, TokenSelection | None], stage: PruneStage, batch: int
) -> PairedTiming:
    images = space.example().expand(batch, -1, -1, -1).contiguous()
    networks = []
    for _, network in networks_of(model, ways):
        networks.append(copy.deepcopy(network))
    return time_paired(networks, [images] * len(networks), rounds=stage.latency_rounds, device=space.device)


def _speedups(
    space: Workspace, model: nn.Module, params: TokenParams, stage: PruneStage
) -> Callable[[TokenSelection], float]:
    def speedup_of(selection: TokenSelection) -> float:
        ways = {"unpruned": None, "pruned": selection}
        return 1 / _timed(space, model, ways, stage, params.batch).ratios[1]

    return speedup_of
