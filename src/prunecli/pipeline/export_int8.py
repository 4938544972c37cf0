"""Exports of eight-bit integers, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.engine.detectors.index import detector_of
from prunecli.engine.evaluate import evaluate
from prunecli.errors import RecipeError
from prunecli.exporting.base import ExportOptions, RuntimeNetwork
from prunecli.exporting.int8 import quantise_statically, quantise_weights
from prunecli.exporting.onnx import FORMAT as ONNX
from prunecli.exporting.staging import int8_path
from prunecli.inputs import call, output_tensors, sample_count
from prunecli.models.token_networks import remembers
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import Workspace
from prunecli.report.export import Quantised

_TRIED = 32
"""Test images on which integers are compared with single precision."""


def quantised(
    space: Workspace, options: ExportOptions, written: Path, batches: Sequence[Any], single: RuntimeNetwork
) -> tuple[Quantised, nn.Module]:
    """Writes integers beside a network in ONNX, and compares the two.

    Args:
        space: The run.
        options: How.
        written: The network.
        batches: Texts to compare on.
        single: What runs the network.

    Returns:
        What it costs, and what runs the integers.

    Raises:
        ModelError: The quantizer fails.
    """
    path = int8_path(written)
    reads = space.inputs.noun == "sequences"
    count = 0
    if reads:
        quantise_weights(written, path)
    else:
        split = space.data().training_split()
        calibration = space.inputs.calibration(split, options.calibration_images, options.batch)
        count = min(options.calibration_images, len(split.labels))
        count -= count % (options.batch or 1)
        inputs = (batch for batch in calibration if options.batch is None or sample_count(batch) == options.batch)
        quantise_statically(written, path, inputs, single.inputs)
    run = ONNX.opened(path)
    tried = batches if reads else list(space.inputs.calibration(space.data().test, _TRIED, options.batch or _TRIED))
    largest, relative = _difference(single, run, tried)
    scores = _scores(space, options, single, run)
    return Quantised(
        file=int8_path(options.path).name,
        kind="dynamic" if reads else "static",
        calibration_images=count,
        largest=largest,
        relative=relative,
        **scores,
    ), run


def require_data(space: Workspace) -> None:
    """Checks that there are images for networks that take some.

    Raises:
        RecipeError: There are none.
    """
    if space.data_name() is None and space.inputs.noun != "sequences":
        raise RecipeError("--int8 measures what layers give on training images: name a data set with --data")


def _difference(single: nn.Module, integers: nn.Module, batches: Sequence[Any]) -> tuple[float, float]:
    """Largest difference, and relative to the largest output."""
    largest = scale = 0.0
    for inputs in batches:
        for one, other in zip(*(output_tensors(call(run, inputs)) for run in (single, integers)), strict=True):
            largest = max(largest, float((one.double() - other.double()).abs().max()))
            scale = max(scale, float(one.double().abs().max()))
    return largest, largest / scale if scale else largest


def _scores(space: Workspace, options: ExportOptions, single: nn.Module, integers: nn.Module) -> dict[str, Any]:
    """Accuracy of both on the test images, or why it is not measured."""
    reason = _why_not(space, options)
    if reason is not None:
        return {"reason": reason}
    space.judging.check()
    task, split, data = space.judging.labelled_task(), space.split("test"), space.data()
    figures = []
    for label, run in (("fp32", single), ("int8", integers)):
        with space.sink.progress(f"{data.name}, {label}", len(split.labels)) as advance:
            batches = space.inputs.batches(split)
            cpu = torch.device("cpu")
            figures.append(evaluate(run, batches, cpu, partial(_say, advance, space.inputs.noun), task=task))
    return {
        "score_name": figures[0].score_name,
        "single_score": figures[0].score,
        "score": figures[1].score,
        "images": figures[0].images,
        "data": data.name,
    }


def _say(advance: Advance, noun: str, done: int) -> None:
    advance(done, f"{done} {noun}")


def _why_not(space: Workspace, options: ExportOptions) -> str | None:
    network = space.model().model
    if space.data_name() is None:
        return "no data set; name one with --data"
    if options.batch:
        return "its batch is fixed"
    if not space.judging.task().labelled:
        return "the data set has no labels"
    if detector_of(network) is not None:
        return "boxes are found by the network's package"
    if remembers(network):
        return "exported, it does not carry its memory from one part of a text to the next"
    if space.judging.classifier() is not network:
        return "its classes are texts that the network's other tower reads"
    return None
