"""Comparing networks measured side by side, and the reports of a run whose networks are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.header import read_manifest
from prunecli.checkpoint.manifest import Architecture
from prunecli.engine.detectors.index import detector_of
from prunecli.inputs import Inputs
from prunecli.measure.latency import Execution, few_rounds, time_paired
from prunecli.models.catalog import example_inputs, takes
from prunecli.models.index import is_reference
from prunecli.models.loading import LoadedModel, load_companion
from prunecli.own_code import PREFIX
from prunecli.phases import shown_by
from prunecli.pipeline.other_inputs import drawn
from prunecli.pipeline.runtimes import in_runtime, version_of
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.stages.eval import eval_stage, latency_figures
from prunecli.pipeline.token_inputs import random_tokens
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import EvalStage, Measurement, ModelSection, Recipe
from prunecli.report.comparison import Comparison, compare_reports
from prunecli.report.schema import Report, read_report


def compare_networks(
    names: list[str],
    paths: Sequence[Path],
    recipe: Recipe,
    sink: Sink,
    *,
    rounds: int,
    command: str,
    execution: Execution,
    runtime: str | None = None,
) -> Comparison:
    """Measures networks and compares every one after the first with the first.

    Args:
        names: What they are called.
        paths: Weights files and references.
        recipe: Data, device, seed, the architecture of foreign weights, and the arguments of references.
        sink: Receives notes and progress.
        rounds: Paired timings.
        command: How to run this again.
        execution: How they are run when they are timed.
        runtime: What runs them then: a name of `prunecli.exporting.index.RUNTIMES`; None: PyTorch.
    """
    reports, networks, examples = _measure(paths, recipe, sink, command, runtime)
    device = Workspace(recipe, sink).device
    with shown_by(sink.phase):
        timing = time_paired(networks, examples, rounds=rounds, device=device, execution=execution)
    reports = [
        report.model_copy(
            update={"metrics": report.metrics.model_copy(update={"latency_ms": latency_figures(timing.timings[index])})}
        )
        for index, report in enumerate(reports)
    ]
    compared = compare_reports(names, reports, list(zip(timing.ratios, timing.ratio_intervals, strict=True)))
    notes = [few_rounds(rounds)]
    if runtime is not None:
        notes.append(f"latencies are those of {version_of(runtime)}")
    elif execution != Execution():
        notes.append(f"latencies are those of networks {execution}")
    added = (note for note in notes if note is not None)
    return compared.model_copy(update={"notes": (*compared.notes, *added)})


def compare_run(reports: Sequence[Path], device: torch.device, *, rounds: int = 30) -> Comparison:
    """Compares the reports of one run; where their checkpoints are at hand the latency ratio is a paired one.

    Args:
        reports: Files written by eval stages, the baseline first.
        device: Where to time.
        rounds: Paired timings.
    """
    read = [read_report(path) for path in reports]
    names = [path.name for path in reports]
    files = [Path(report.model.path) for report in read if report.model.path is not None]
    if len(files) < len(read) or not all(path.is_file() for path in files):
        return compare_reports(names, read)
    # What was evaluated was loaded once already, with whatever numbers it holds.
    loaded = [
        load_companion(path, report.model.ref, allow_nonfinite=True) for path, report in zip(files, read, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    examples = [_example(network, report, generator) for network, report in zip(loaded, read, strict=True)]
    if any(example is None for example in examples):
        return compare_reports(names, read)  # inputs of the user's own are in no file
    timing = time_paired([network.model for network in loaded], examples, rounds=rounds, device=device)
    return compare_reports(names, read, list(zip(timing.ratios, timing.ratio_intervals, strict=True)))


def _example(loaded: LoadedModel, report: Report, generator: torch.Generator) -> Any:
    model, network, detector = report.model, loaded.model, detector_of(loaded.model)
    if detector is not None:
        return detector.example(model.input_shape, generator)
    if model.ref.startswith(PREFIX):
        integers = loaded.manifest.architecture.integer_inputs
        return drawn((1, *model.input_shape), integers, generator) if model.input_shape else None
    taken = takes(model.ref)
    if taken == "other":
        return example_inputs(model.ref, network, 0)
    if taken == "tokens":
        return random_tokens(network, model.input_shape, generator)
    return torch.randn(1, *model.input_shape, generator=generator)


def recipe_of(path: Path, recipe: Recipe) -> Recipe:
    """The recipe of one network: a weights file, or a reference such as timm:resnet50."""
    return _recipe_of_reference(path, recipe, {}) if is_reference(path) else _recipe_of_file(path, recipe)


def _measure(
    paths: Sequence[Path], recipe: Recipe, sink: Sink, command: str, runtime: str | None
) -> tuple[list[Report], list[nn.Module], list[Inputs]]:
    reports, networks, examples = [], [], []
    built = _built_arguments(paths)
    for path in paths:
        own = _recipe_of_reference(path, recipe, built) if is_reference(path) else _recipe_of_file(path, recipe)
        space = Workspace(own, sink, command)
        if is_reference(path) and recipe.data.name is not None and space.untrained():
            sink.warn(f"{path} has random weights, so its accuracy means nothing; give a weights file, or --pretrained")
        measure = _measurements(space, recipe.data.name is not None)
        reports.append(eval_stage(space, EvalStage(measure=measure), None))
        networks.append(space.model().model if runtime is None else in_runtime(space, runtime))
        examples.append(space.inputs.example())
    return reports, networks, examples


def _measurements(space: Workspace, has_data: bool) -> tuple[Measurement, ...]:
    """What can be measured of a network; latencies are taken afterwards, in turns."""
    accuracy: tuple[Measurement, ...] = ("accuracy",) if has_data else ()
    return ("params", "macs", "memory", "size", *accuracy, *space.activity.comparable(has_data))


def _recipe_of_file(path: Path, recipe: Recipe) -> Recipe:
    section = ModelSection(
        weights=str(path),
        ref=_reference_for(path, recipe.model.ref),
        allow_nonfinite=recipe.model.allow_nonfinite,
    )
    return replace(recipe, model=section)


def _recipe_of_reference(path: Path, recipe: Recipe, built: Mapping[str, Architecture]) -> Recipe:
    section, data = replace(recipe.model, ref=str(path), weights=None), recipe.data
    like = built.get(str(path))
    if like is not None and not section.kwargs and section.num_classes is None and section.in_chans is None:
        section = replace(section, kwargs=like.kwargs)
    if like is not None and data.image_size is None and len(like.input_shape) == 3:
        data = replace(data, image_size="{1}x{2}".format(*like.input_shape))
    return replace(recipe, model=section, data=data)


def _built_arguments(paths: Sequence[Path]) -> dict[str, Architecture]:
    """How the first checkpoint of each architecture was built, by its reference."""
    built: dict[str, Architecture] = {}
    for path in paths:
        manifest = read_manifest(path) if path.is_file() else None
        if manifest is not None:
            built.setdefault(manifest.architecture.ref, manifest.architecture)
    return built


def _reference_for(path: Path, ref: str | None) -> str | None:
    """--arch is for foreign weights; a checkpoint of ours names its own architecture."""
    ours = path.is_file() and read_manifest(path) is not None
    return None if ours else ref
