"""Batches that several passes use: prepared once where memory allows it, or cut in two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np

from prunecli.errors import DataError
from prunecli.inputs import every_other_sample, output_tensors, sample_count, split_batch

_IN_MEMORY = 2**29


class KeptBatches:
    """Batches that are prepared once, if they fit into half a gibibyte, else again in every pass.

    Attributes:
        batch_size: As the batches say.
        contiguous: Whether they go on from one to the next.

    Args:
        batches: The batches; they are the same in every pass.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._kept: list[Any] | None = None
        self.batch_size = getattr(batches, "batch_size", None)
        self.contiguous = bool(getattr(batches, "contiguous", False))

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Any] | None = []
        size = 0
        for batch in self._batches:
            if kept is not None:
                size += sum(tensor.nbytes for tensor in output_tensors(batch))
                kept = [*kept, batch] if size <= _IN_MEMORY else None
            yield batch
        self._kept = kept


class HalfOfBatches:
    """Every other sample of each batch, so that both halves have as many samples of each kind as the other.

    Batches of one sample belong to the halves in turns.

    Args:
        batches: The batches, inputs or (inputs, labels).
        odd: Whether it is the half with the second sample.
        like: Example inputs, which tell a batch of several inputs from one with labels.
    """

    def __init__(self, batches: Iterable[Any], *, odd: bool, like: Any = None) -> None:
        self._batches, self._odd, self._like = batches, int(odd), like

    def __iter__(self) -> Iterator[Any]:
        """Yields pairs of inputs and labels."""
        for number, batch in enumerate(self._batches):
            inputs, labels = split_batch(batch, self._like)
            if sample_count(inputs) > 1:
                yield every_other_sample(inputs, self._odd), every_other_sample(labels, self._odd)
            elif number % 2 == self._odd:
                yield inputs, labels


class FirstSteps:
    """The first batches of training, over as many epochs as they take, as if they were one epoch.

    Batches that go on from one to the next are the same ones in every epoch and at every seed, so the seed decides
    which of them is the first; others are in an order that depends on the seed anyway. Where a text begins again, a
    network that remembers still has the end of it in mind.

    Attributes:
        batch_size: As the batches say.
        contiguous: Whether they go on from one to the next.

    Args:
        batches: Training batches.
        steps: How many.
        seed: Where they begin, if they go on from one to the next.
    """

    def __init__(self, batches: Any, steps: int, seed: int) -> None:
        self._batches, self._steps = batches, steps
        self.batch_size = getattr(batches, "batch_size", None)
        self.contiguous = bool(getattr(batches, "contiguous", False))
        self._start = int(np.random.default_rng(seed).integers(len(batches))) if self.contiguous else 0

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Any]:
        """Yields all of them."""
        return self.epoch(1)

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]:
        """Yields those from index `first` on.

        Raises:
            DataError: An epoch has no batch at all.
        """
        batches = chain.from_iterable(map(self._whole_epoch, count(1)))
        return islice(batches, self._start + first, self._start + self._steps)

    def _whole_epoch(self, number: int) -> Iterator[Any]:
        empty = True
        for batch in self._batches.epoch(number):
            empty = False
            yield batch
        if empty:
            raise DataError("there is no batch to train on: no training image could be read; check the files")
