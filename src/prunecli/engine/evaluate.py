"""Figures and loss over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import ranks
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

    Several processes take turns with the batches, each of them is computed once, and every process gets the figures
    that one process would have got.

    Args:
        model: Returns what `task` expects, mostly scores; moved to `device`, its mode is restored afterwards.
        batches: Pairs of inputs (a tensor such as (N, C, H, W) or frames (N, T, C, H, W), a tuple, a mapping or a list)
            and labels as `task` expects them; see `Carrier` for those that are `contiguous`.
        device: Where to run.
        on_step: Called after each batch with the number of images done so far; by several processes, equally often.
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
    measured: list[Any] = []  # of this process's batches, while the others measure theirs
    with resource_errors(getattr(batches, "batch_size", None)), channels_last(model) as layout, torch.no_grad():
        for batch in _own(batches):
            if batch is None:
                measured.append(None)
            else:
                inputs, labels = batch
                labels = map_tensors(labels, lambda tensor: tensor.to(device, non_blocking=True))
                predictions = task.predictions(carrier, model, move_batch(inputs, device, layout))
                images += sample_count(inputs)
                if ranks.together():
                    measured.append(map_tensors(meter.measure(predictions, labels), Tensor.cpu))
                else:
                    meter.update(predictions, labels)
            if on_step is not None:
                on_step(images * ranks.world_size())
    if ranks.together():
        images = int(ranks.summed([torch.tensor(images)])[0])
        for entry in chain.from_iterable(zip(*ranks.gathered(measured), strict=True)):  # in the order of the batches
            if entry is not None:
                meter.add(entry)
    model.train(training)
    if images == 0:
        raise DataError("there is no image to measure accuracy on: none could be read; check the data set's files")
    return meter.compute()


def _own(batches: Iterable[Any]) -> Iterator[Any]:
    """This process's batches, and None in place of some; as many on every process."""
    own = getattr(batches, "own", None)
    if own is not None and ranks.together():
        yield from own()
        return
    for index, batch in enumerate(batches):
        yield batch if index % ranks.world_size() == ranks.rank() else None
