"""Which images make up which batch of which epoch, and the random numbers each batch is augmented with.

Both follow from seed, epoch and the batch's place alone. So it does not matter how many processes load, and an epoch
can be entered in the middle.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

_ORDER = 0  # in the place where the batches of an epoch have theirs, counted from 1


@dataclass(frozen=True)
class BatchPlan:
    """One batch before it is loaded: the images' indices, and the seed of what is random about them."""

    indices: list[int]
    seed: int | None = None


class InOrder:
    """The batches of `images` images as they stand, nothing random about them.

    Attributes:
        batch_size: Images in a full batch.
    """

    def __init__(self, images: int, batch_size: int) -> None:
        self._images, self._batch_size = images, batch_size
        self.batch_size = min(images, batch_size)

    def __len__(self) -> int:
        return math.ceil(self._images / self._batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        for start in range(0, self._images, self._batch_size):
            yield BatchPlan(list(range(start, min(start + self._batch_size, self._images))))


class Shuffled:
    """The batches of an epoch, shuffled and each with a seed; a last batch of one image is left out.

    Attributes:
        batch_size: Images in a full batch.
        epoch: Number of the epoch that the next iteration gives, from 1.
        first: Index of the batch that it begins with.

    Args:
        images: How many images there are.
        batch_size: Images in a batch.
        seed: Any integer.
    """

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.epoch, self.first = 1, 0
        self._all, self._batch_size, self._seed = images, batch_size, seed % 2**64
        self.batch_size = min(images, batch_size)
        alone = images > 1 and images % batch_size == 1
        self._images = images - 1 if alone else images  # of the shuffled ones: in every epoch another is left out

    def __len__(self) -> int:
        return math.ceil(self._images / self._batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        return self._plans(self.epoch, self.first)

    def _plans(self, epoch: int, first: int) -> Iterator[BatchPlan]:
        order = np.random.default_rng(self._sequence(epoch, _ORDER)).permutation(self._all)[: self._images].tolist()
        for batch in range(first, len(self)):
            seed = int(self._sequence(epoch, 1 + batch).generate_state(1, np.uint64)[0])
            yield BatchPlan(order[batch * self._batch_size : (batch + 1) * self._batch_size], seed)

    def _sequence(self, epoch: int, place: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=(epoch, place))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeds the generators that augmentations draw from, and puts their states back afterwards.

    These are the global ones of torch (on the CPU), NumPy and Python. Without a seed nothing happens.
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
