"""Which samples make up which batch of which epoch, and the seed of each batch's augmentation.

Both depend only on the seed, the epoch and the batch's index, so the number of loading processes does not matter and an
epoch can be entered in the middle.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

_ORDER = 0  # spawn key of an epoch's order; those of its batches count from 1


@dataclass(frozen=True)
class BatchPlan:
    """One batch before it is loaded: the samples' indices, and the seed of their augmentation."""

    indices: list[int]
    seed: int | None = None


class InOrder:
    """Batches of `samples` samples in their order, without anything random.

    Attributes:
        batch_size: Samples in a full batch.
    """

    def __init__(self, samples: int, batch_size: int) -> None:
        self._samples, self._batch_size = samples, batch_size
        self.batch_size = min(samples, batch_size)

    def __len__(self) -> int:
        return math.ceil(self._samples / self._batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        for start in range(0, self._samples, self._batch_size):
            yield BatchPlan(list(range(start, min(start + self._batch_size, self._samples))))


class Shuffled:
    """The batches of an epoch, shuffled, each with a seed; a last batch of one sample is left out.

    Attributes:
        batch_size: Samples in a full batch.
        epoch: Number of the epoch that the next iteration yields, from 1.
        first: Index of the batch that it starts with.

    Args:
        samples: Number of samples.
        batch_size: Samples in a batch.
        seed: Any integer.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.epoch, self.first = 1, 0
        self._all, self._batch_size, self._seed = samples, batch_size, seed % 2**64
        self.batch_size = min(samples, batch_size)
        single = samples > 1 and samples % batch_size == 1
        self._samples = samples - 1 if single else samples  # after shuffling, so each epoch leaves out another one

    def __len__(self) -> int:
        return math.ceil(self._samples / self._batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        return self._plans(self.epoch, self.first)

    def _plans(self, epoch: int, first: int) -> Iterator[BatchPlan]:
        order = np.random.default_rng(self._sequence(epoch, _ORDER)).permutation(self._all)[: self._samples].tolist()
        for batch in range(first, len(self)):
            seed = int(self._sequence(epoch, 1 + batch).generate_state(1, np.uint64)[0])
            yield BatchPlan(order[batch * self._batch_size : (batch + 1) * self._batch_size], seed)

    def _sequence(self, epoch: int, key: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=(epoch, key))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds the generators that augmentations draw from, and restores their states afterwards.

    These are the global ones of torch (on the CPU), NumPy and Python. Without a seed, nothing happens.
    """
    if seed is None:
        yield
        return
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed would seed the accelerators too
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
