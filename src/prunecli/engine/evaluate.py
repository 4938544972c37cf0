"""Figures and loss over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from prunecli.engine.device import channels_last
from prunecli.engine.resources import resource_errors
from prunecli.engine.tasks import Accuracy, Classification, Figures, Judge, SegmentationAccuracy
from prunecli.errors import DataError
from prunecli.inputs import logits

__all__ = ["Accuracy", "Figures", "SegmentationAccuracy", "evaluate"]

_IMAGE_DIMENSIONS = 4
Found = TypeVar("Found")


@overload
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> Accuracy: ...


@overload
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
    *,
    task: Judge[Found],
) -> Found: ...


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
    *,
    task: Judge[Any] | None = None,
) -> Any:
    """Runs `model` over all batches in evaluation mode.

    Args:
        model: Returns class scores as `task` wants them; moved to `device`, its mode is put back afterwards.
        batches: Images of shape (N, C, H, W), or frames (N, T, C, H, W), and labels as `task` wants them.
        device: Where to run.
        on_step: Called after each batch with the number of images done so far.
        task: How scores and labels are compared; default: classification.

    Returns:
        Figures of the images that the batches gave.

    Raises:
        DataError: No image could be read.
        ResourceError: Memory ran out, or a process that loads images died.
    """
    training = model.training
    model.to(device).eval()
    meter = (task or Classification()).meter(device)
    images = 0
    with resource_errors(getattr(batches, "batch_size", None)), channels_last(model) as layout, torch.inference_mode():
        for batch, labels in batches:
            labels = labels.to(device, non_blocking=True)
            fitting = layout if batch.dim() == _IMAGE_DIMENSIONS else torch.contiguous_format  # frames have one more
            meter.update(logits(model(batch.to(device, non_blocking=True, memory_format=fitting))).float(), labels)
            images += len(labels)
            if on_step is not None:
                on_step(images)
    model.train(training)
    if images == 0:
        raise DataError("there is no image to measure accuracy on: none could be read; check the data set's files")
    return meter.compute()
