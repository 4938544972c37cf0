"""Figures and loss over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import ranks
from prunecli.engine.carrying import Carrier
from prunecli.engine.device import channels_last, move_batch
from prunecli.engine.divided import is_sharded
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
    that one process would have got. A network that they divide they run equally often: see `_in_step`.

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
    (model if is_sharded(model) else model.to(device)).eval()
    task = task if task is not None else Classification.with_classes(0)
    meter = task.meter(device)
    images, carrier = 0, Carrier(batches)
    measured: list[Any] = []  # of this process's batches, while the others measure theirs
    with resource_errors(getattr(batches, "batch_size", None)), channels_last(model) as layout, torch.no_grad():
        for batch, counts in _in_step(batches) if is_sharded(model) else _own(batches):
            if batch is not None:
                inputs, labels = batch
                predictions = task.predictions(carrier, model, move_batch(inputs, device, layout))
            if batch is None or not counts:
                measured.append(None)
            else:
                labels = map_tensors(labels, lambda tensor: tensor.to(device, non_blocking=True))
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


def _own(batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """This process's batches, and None in place of some; as many on every process. All of them count."""
    own = getattr(batches, "own", None)
    if own is not None and ranks.together():
        for batch in own():
            yield batch, True
        return
    for index, batch in enumerate(batches):
        yield batch if index % ranks.world_size() == ranks.rank() else None, True


def _in_step(batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """This process's batches, and whether they count; when one process has a batch, all of them have one.

    A divided network (`prunecli.engine.sharding`) runs in all processes together, so one without a batch computes
    another one, which does not count.
    """
    last: Any = None
    for batch in _turns(batches):
        having = ranks.gathered((batch is not None, last is not None))
        counting = [counts for counts, _ in having]
        if not any(counting):
            yield None, False
            continue
        if not all(counts or lasting for counts, lasting in having):
            another = ranks.from_rank(counting.index(True), batch)
            last = another if last is None else last
        last = last if batch is None else batch
        yield last, batch is not None


def _turns(batches: Iterable[Any]) -> Iterator[Any]:
    """This process's batch of each turn, in which every process has one; None where there is none for it."""
    own = getattr(batches, "own", None)
    if own is not None:
        yield from own()
        return
    every = iter(batches)
    while turn := list(islice(every, ranks.world_size())):
        yield turn[ranks.rank()] if ranks.rank() < len(turn) else None
