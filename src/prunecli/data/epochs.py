"""Which samples make up which batch of which epoch, and the seed of each sample's augmentation.

Both depend only on the seed, the epoch, the batch's index and the sample's place in it. So the number of loading
processes does not matter, nor how many processes share a batch, and an epoch can be entered in the middle.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from prunecli import ranks

_ORDER = 0  # spawn key of an epoch's order; those of its batches count from 1


@dataclass(frozen=True)
class BatchPlan:
    """One batch before it is loaded, or one process's share of it.

    Attributes:
        indices: The samples.
        seeds: Of the augmentation of each; None: nothing about it is random.
        counts: False where they stand in for the share of a process that has none: they are computed with, so that all
            processes do the same things, and count as nothing.
    """

    indices: list[int]
    seeds: list[int] | None = None
    counts: bool = True

    def share(self, fewest: int) -> BatchPlan:
        """What this process loads of the batch: every so many samples, starting with its rank.

        Args:
            fewest: Samples that a share has at least. Where the batch has too few of them, the last processes load what
                the first ones do, and it does not count.
        """
        parts = min(ranks.world_size(), max(1, len(self.indices) // fewest))
        if parts == ranks.world_size() == 1:
            return self
        own = slice(ranks.rank() % parts, None, parts)
        seeds = self.seeds[own] if self.seeds is not None else None
        return BatchPlan(self.indices[own], seeds, ranks.rank() < parts)


class InOrder:
    """Batches of `samples` samples in their order, without anything random.

    Attributes:
        batch_size: Samples in a full batch.
        shared: Whether the next iteration yields this process's batches alone, which take turns; default: all.
    """

    def __init__(self, samples: int, batch_size: int) -> None:
        self.shared = False
        self._samples, self._batch_size = samples, batch_size
        self.batch_size = min(samples, batch_size)

    def __len__(self) -> int:
        return math.ceil(self._samples / self._batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        starts = range(0, self._samples, self._batch_size)
        for start in ranks.own_share(starts) if self.shared else starts:
            yield BatchPlan(list(range(start, min(start + self._batch_size, self._samples))))


class Shuffled:
    """The batches of an epoch, shuffled, with seeds; a last batch of one sample is left out.

    Several processes share each batch.

    Attributes:
        batch_size: Samples in a full batch, of all processes together.
        fewest: Samples in a batch, or a process's share of one, below which it is left out.
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
        self.fewest = min(2, self.batch_size)  # batch normalisation needs two
        single = samples > 1 and samples % batch_size == 1
        self._samples = samples - 1 if single else samples  # after shuffling, so each epoch leaves out another one

    def __len__(self) -> int:
        return math.ceil(self._samples / self._batch_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        return self._plans(self.epoch, self.first)

    def _plans(self, epoch: int, first: int) -> Iterator[BatchPlan]:
        order = np.random.default_rng(self._sequence(epoch, _ORDER)).permutation(self._all)[: self._samples].tolist()
        for batch in range(first, len(self)):
            indices = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            seeds = self._sequence(epoch, 1 + batch).generate_state(len(indices), np.uint64).tolist()
            yield BatchPlan(indices, seeds).share(self.fewest)

    def _sequence(self, epoch: int, key: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=(epoch, key))


def seed_augmentation(seed: int) -> None:
    """Seeds the generators that augmentations draw from: the global ones of torch (on the CPU), NumPy and Python."""
    torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed would seed the accelerators too
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """A context after which these generators are in the states that they were in before."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
