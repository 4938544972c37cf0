"""Figures and loss over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from prunecli.engine.carrying import Carrier
from prunecli.engine.device import channels_last, move_batch
from prunecli.engine.resources import resource_errors
from prunecli.engine.tasks.base import Task
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import DataError
from prunecli.inputs import map_tensors, sample_count


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
    *,
    task: Task | None = None,
) -> Any:
    """Runs `model` over all batches in evaluation mode.

    Args:
        model: Returns what `task` expects, mostly scores; moved to `device`, its mode is restored afterwards.
        batches: Pairs of inputs (a tensor such as (N, C, H, W) or frames (N, T, C, H, W), a tuple, a mapping or a list)
            and labels as `task` expects them; see `Carrier` for those that are `contiguous`.
        device: Where to run.
        on_step: Called after each batch with the number of images done so far.
        task: How scores and labels are compared; default: classification.

    Returns:
        The task's figures of the images in the batches.

    Raises:
        DataError: No image could be read.
        ResourceError: Memory ran out, or a process that loads images died.
    """
    training = model.training
    model.to(device).eval()
    task = task if task is not None else Classification.with_classes(0)
    meter = task.meter(device)
    images, carrier = 0, Carrier(batches)
    with resource_errors(getattr(batches, "batch_size", None)), channels_last(model) as layout, torch.no_grad():
        for inputs, labels in batches:
            labels = map_tensors(labels, lambda tensor: tensor.to(device, non_blocking=True))
            meter.update(task.predictions(carrier, model, move_batch(inputs, device, layout)), labels)
            images += sample_count(inputs)
            if on_step is not None:
                on_step(images)
    model.train(training)
    if images == 0:
        raise DataError("there is no image to measure accuracy on: none could be read; check the data set's files")
    return meter.compute()
