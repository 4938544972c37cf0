"""The stage compare: comparing reports, or networks measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.checkpoint.io import read_manifest
from prunecli.errors import GateFailed, RecipeError
from prunecli.measure.latency import time_paired
from prunecli.models.loading import load_companion
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.stages.eval import eval_stage, latency_figures
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import EvalStage, Measurement, ModelSection, Recipe
from prunecli.report.comparison import Comparison, Gate, compare_reports
from prunecli.report.schema import Report, read_report


def compare_paths(
    paths: Sequence[Path], recipe: Recipe, sink: Sink, *, rounds: int = 30, command: str = ""
) -> Comparison:
    """Compares every report or checkpoint after the first with the first.

    Checkpoints are measured, with latencies taken in turns so that their ratio is a paired one; given a data set in
    `recipe`, their accuracy is measured too.

    Args:
        paths: Reports (.json), or weights files.
        recipe: Data, device, seed, and the architecture of foreign weights.
        sink: Receives notes and progress.
        rounds: Paired timings.
        command: How to run this again.

    Raises:
        RecipeError: There are fewer than two, or reports and weights are mixed.
    """
    if len(paths) < 2:
        raise RecipeError("compare needs a baseline and at least one more report or checkpoint")
    weights = [path for path in paths if path.suffix in WEIGHT_SUFFIXES]
    names = _short_names(paths)
    if not weights:
        return compare_reports(names, [read_report(path) for path in paths])
    if len(weights) < len(paths):
        other = next(path for path in paths if path not in weights)
        raise RecipeError(
            f"{other} is a report and {weights[0]} is not; compare reports with reports or checkpoints with checkpoints"
        )
    reports, networks, examples = _measure(paths, recipe, sink, command)
    timing = time_paired(networks, examples, rounds=rounds, device=Workspace(recipe, sink).device)
    reports = [
        report.model_copy(
            update={"metrics": report.metrics.model_copy(update={"latency_ms": latency_figures(timing.timings[index])})}
        )
        for index, report in enumerate(reports)
    ]
    return compare_reports(names, reports, list(zip(timing.ratios, timing.ratio_intervals, strict=True)))


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
    networks = [
        load_companion(path, report.model.ref, allow_nonfinite=True).model
        for path, report in zip(files, read, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randn(1, *report.model.input_shape, generator=generator) for report in read]
    timing = time_paired(networks, examples, rounds=rounds, device=device)
    return compare_reports(names, read, list(zip(timing.ratios, timing.ratio_intervals, strict=True)))


def judge(comparison: Comparison, gate: Gate | None) -> GateFailed | None:
    """The failure to raise once the comparison is shown: the condition is true of some candidate.

    Raises:
        RecipeError: The condition needs a figure that was not measured.
    """
    failed = [c.name for c in comparison.candidates if gate.holds(c)] if gate is not None else []
    return GateFailed(f"gate: {gate.text} holds for {', '.join(failed)}") if gate is not None and failed else None


def _measure(
    paths: Sequence[Path], recipe: Recipe, sink: Sink, command: str
) -> tuple[list[Report], list[nn.Module], list[torch.Tensor]]:
    reports, networks, examples = [], [], []
    for path in paths:
        section = ModelSection(weights=str(path), ref=_reference_for(path, recipe.model.ref))
        space = Workspace(replace(recipe, model=section), sink, command)
        measure = _measurements(space, recipe.data.name is not None)
        reports.append(eval_stage(space, EvalStage(measure=measure), None))
        networks.append(space.model().model)
        examples.append(space.inputs.example())
    return reports, networks, examples


def _measurements(space: Workspace, has_data: bool) -> tuple[Measurement, ...]:
    """What can be measured of a network; latencies are taken afterwards, in turns."""
    accuracy: tuple[Measurement, ...] = ("accuracy",) if has_data else ()
    return ("params", "macs", "memory", "size", *accuracy, *space.activity.comparable(has_data))


def _reference_for(path: Path, ref: str | None) -> str | None:
    """--arch is for foreign weights; a checkpoint of ours names its own architecture."""
    ours = path.is_file() and read_manifest(path) is not None
    return None if ours else ref


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names, or whole paths where two files share a name."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
