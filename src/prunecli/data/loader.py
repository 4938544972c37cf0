"""From splits to batches: timm's transforms, torch's loader.

A batch is inputs (see `prunecli.inputs`) and labels. Splits of images give tensors (N, C, H, W), recordings of events
tensors (N, T, 2, H, W), and a `SampleSplit` whatever its samples are.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from prunecli import ranks
from prunecli.data.epochs import BatchPlan, InOrder, Shuffled, generators_kept, seed_augmentation
from prunecli.data.images import BadImages, UnreadableImage
from prunecli.data.pictures import PictureDataset
from prunecli.data.preparation import Augmentation, PreparedSamples, Preprocessing, Sample, prepared
from prunecli.data.splits import Split
from prunecli.engine.resources import as_loader_error
from prunecli.errors import DataError, PruneError, ResourceError
from prunecli.inputs import map_tensors, sample_count

_Batch: TypeAlias = tuple[Any, Any]
"""Inputs (see `prunecli.inputs`) and labels: a tensor, or a list of mappings with an entry for each sample."""


_Unreadable = list[tuple[str, str, str]]
"""File, reason and what it should have been."""
_Loaded = tuple[list[Sample], _Unreadable, bool]


class _PlannedDataset(Dataset[Any]):
    """Loads one planned batch: the samples that can be read, and the files that cannot, with the reasons."""

    def __init__(self, samples: PreparedSamples | PictureDataset) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitems__(self, plan: BatchPlan) -> _Loaded:
        samples: list[Sample] = []
        unreadable: _Unreadable = []
        with generators_kept() if plan.seeds is not None else nullcontext():
            for place, index in enumerate(plan.indices):
                if plan.seeds is not None:
                    seed_augmentation(plan.seeds[place])
                try:
                    samples.append(self._samples[index])
                except UnreadableImage as error:
                    unreadable.append((str(error.path), error.reason, error.kind))
        return samples, unreadable, plan.counts


@dataclass(frozen=True)
class _Collated:
    """One batch, None if nothing of it could be read, what could not, and whether it counts."""

    batch: _Batch | None
    unreadable: _Unreadable
    counts: bool

    def pin_memory(self) -> _Collated:
        """The same in page-locked memory. torch calls this; older versions would turn tuples into lists themselves."""
        return replace(self, batch=map_tensors(self.batch, Tensor.pin_memory))


def _collate(stack: Callable[[list[Any]], Any], stack_labels: Callable[[list[Any]], Any], loaded: Any) -> _Collated:
    samples, unreadable, counts = loaded
    if not samples:
        return _Collated(None, unreadable, counts)
    inputs, labels = zip(*samples, strict=True)
    return _Collated((stack(list(inputs)), stack_labels(list(labels))), unreadable, counts)


def _stacked_labels(labels: list[Any]) -> Any:
    """One batch of the labels of several samples; images differ in how many objects they have."""
    return labels if isinstance(labels[0], dict) else default_collate(labels)


def _stacked(inputs: list[Any]) -> Any:
    """One batch of the inputs of several samples."""
    if isinstance(inputs[0], list):
        return list(chain.from_iterable(inputs))
    stacked = default_collate(inputs)
    # default_collate makes a list of tuples: one argument in place of several.
    return tuple(stacked) if isinstance(inputs[0], tuple) and isinstance(stacked, list) else stacked


def _joined(first: Any, second: Any) -> Any:
    """The samples of two batches as one."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, list):
        return first + second
    if isinstance(first, Mapping):
        return {key: _joined(value, second[key]) for key, value in first.items()}
    return tuple(_joined(*entries) for entries in zip(first, second, strict=True))


@contextmanager
def _no_signals() -> Iterator[None]:
    """Keeps torch from raising an error at an arbitrary point of the program when a loading process has died.

    The death is still noticed, within five seconds of waiting for a batch of that process.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


class Batches:
    """Batches of inputs and labels, the same ones on each iteration.

    Unreadable images are left out as far as `bad` allows; a batch in which none is left is skipped. The global random
    generators are not touched.

    Attributes:
        batch_size: Samples in a full batch.

    Args:
        dataset: Samples with labels.
        order: Which samples make up each batch.
        workers: Number of loading processes; 0 loads in this process.
        bad: Counts unreadable images; without it the first is an error.
        keep_workers: Whether loading processes stay alive after the last batch.
    """

    def __init__(
        self,
        dataset: PreparedSamples | PictureDataset,
        order: InOrder | Shuffled,
        workers: int,
        bad: BadImages | None,
        *,
        keep_workers: bool = False,
    ) -> None:
        self._bad = bad if bad is not None else BadImages()
        self._order, self.batch_size = order, order.batch_size
        stack = getattr(dataset, "stacked", None) or _stacked
        stack_labels = getattr(dataset, "stacked_labels", None) or _stacked_labels
        self._loader: DataLoader[Any] = DataLoader(
            _PlannedDataset(dataset),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=partial(_collate, stack, stack_labels),
            num_workers=workers,
            generator=torch.Generator(),  # each iteration draws a number, else from the global generator
            pin_memory=torch.cuda.is_available(),
            persistent_workers=keep_workers and workers > 0,
        )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[_Batch]:
        """Yields inputs and labels.

        Raises:
            DataError: A file or mask is wrong, or more images cannot be read than may be left out.
            ResourceError: A loading process has died, or memory ran out.
        """
        for collated in self._load():
            self._note(collated.unreadable)
            if collated.batch is not None:
                yield collated.batch

    def own(self) -> Iterator[_Batch | None]:
        """Yields this process's batches, which take turns; alone, all of them.

        Every process gets as many: None is one of which nothing could be read, or that does not exist.

        Raises:
            DataError: See `__iter__`; also if too many images cannot be read by all processes together.
            ResourceError: See `__iter__`.
        """
        assert isinstance(self._order, InOrder), "other orders have shares of each batch"
        self._order.shared = True
        try:
            loaded = self._load()
            for _ in range(-(-len(self) // ranks.world_size())):
                collated = next(loaded, _Collated(None, [], counts=False))
                self._note_together(collated.unreadable)
                yield collated.batch
        finally:
            self._order.shared = False

    def _note(self, unreadable: _Unreadable) -> None:
        for path, reason, kind in unreadable:
            self._bad.add(path, reason, kind)

    def _note_together(self, unreadable: _Unreadable, known: int | None = None) -> None:
        """Counts what any process could not read, in the same order on each; `known`: how many, if that is known."""
        if known is None:
            known = int(ranks.summed([torch.tensor(len(unreadable))])[0])
        for files in ranks.gathered(unreadable) if known else ():
            self._note(files)

    def _load(self) -> Iterator[_Collated]:
        """The planned batches."""
        with _no_signals():
            batches = iter(self._loader)
        while True:
            try:
                collated = next(batches)
            except StopIteration:
                return
            except PruneError as error:
                last = str(error).strip().splitlines()[-1]  # a worker puts a traceback before it
                kind = type(error) if isinstance(error, ResourceError) else DataError
                raise kind(last.partition(f"{type(error).__name__}: ")[2] or last) from error
            except (RuntimeError, OSError, EOFError, MemoryError) as error:
                explained = as_loader_error(error, self.batch_size)
                if explained is None:
                    raise
                raise explained from error
            yield collated


class TrainingBatches(Batches):
    """Shuffled, augmented batches: an epoch's order and augmentation depend on the seed and the epoch's number alone.

    They do not depend on the number of workers or on what was loaded before, so an epoch can be entered anywhere.
    Iterating yields the epoch after the last one. Several processes get a share of each batch.

    Attributes:
        position: Index, within its epoch, of the batch after the last one that was yielded.
        counts: Whether what was yielded last is a share of its batch; else it stands in for one of no sample: it has to
            be computed with like any other, and to count as nothing.
    """

    def __init__(self, dataset: PreparedSamples, order: Shuffled, workers: int, bad: BadImages | None) -> None:
        super().__init__(dataset, order, workers, bad, keep_workers=True)
        self._shuffled = order
        self._next = 1
        self.position, self.counts = 0, True

    def __iter__(self) -> Iterator[_Batch]:
        """Yields the batches of the next epoch."""
        return self.epoch(self._next)

    def epoch(self, number: int, first: int = 0) -> Iterator[_Batch]:
        """Yields the batches of epoch `number` (from 1), starting with index `first`; earlier ones are not loaded.

        If unreadable images are left out, there may be fewer batches than `len` says; `position` counts all.

        Raises:
            DataError: A file or mask is wrong, or more images cannot be read than may be left out.
            ResourceError: A loading process has died, or memory ran out.
        """
        self._next = number + 1
        return self._from(number, first)

    def _from(self, number: int, first: int) -> Iterator[_Batch]:
        self._shuffled.epoch, self._shuffled.first, self.position = number, first, first
        for index, collated in enumerate(self._load(), start=first):
            batch = self._agreed(collated)
            if batch is not None:
                self.position = index + 1
                yield batch

    def _agreed(self, collated: _Collated) -> _Batch | None:
        """This process's share of a batch, or what stands in for it; None on all processes if the batch is left out."""
        batch, fewest = collated.batch, self._shuffled.fewest
        samples = sample_count(batch[1]) if batch is not None else 0
        if not ranks.together():
            self._note(collated.unreadable)
            return batch if samples >= fewest else None
        numbers = torch.zeros(2, ranks.world_size())  # how many samples each has, and how many of them count
        numbers[:, ranks.rank()] = torch.tensor([samples, samples * collated.counts])
        (having, counting), unreadable = ranks.summed([numbers, torch.tensor(len(collated.unreadable))])
        self._note_together(collated.unreadable, int(unreadable))
        if counting.sum() < fewest:
            return None
        receiver = int(counting.argmax())
        # What could not be read has left these with fewer than a share has: somebody else takes them, so that together
        # all processes see the samples that one would.
        for giver in (int(number) for number in ((counting > 0) & (counting < fewest)).nonzero()):
            if giver != receiver:
                given = ranks.from_rank(giver, batch)
                batch = _joined(batch, given) if ranks.rank() == receiver else batch
                counting[giver] = 0
        enough = having >= fewest
        enough[receiver] = True
        self.counts = bool(counting[ranks.rank()])
        batch = batch if enough[ranks.rank()] else None
        if not enough.all():
            another = ranks.from_rank(receiver, batch)
            return another if batch is None else batch
        return batch


def evaluation_batches(
    split: Split, preprocessing: Preprocessing, batch_size: int, workers: int = 0, *, bad: BadImages | None = None
) -> Batches:
    """All samples of `split` in order.

    Images are resized, centre-cropped (not if they have masks) and normalised; recordings of events become frames as
    `preprocessing.frames` says.
    """
    dataset = prepared(split, preprocessing, None)
    return Batches(dataset, InOrder(len(dataset), batch_size), workers, bad)


def picture_batches(dataset: PictureDataset, batch_size: int, workers: int, bad: BadImages) -> Batches:
    """All pictures in order: a tuple with the inputs of each network, and a label for each picture."""
    return Batches(dataset, InOrder(len(dataset), batch_size), workers, bad)


def training_batches(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    *,
    seed: int,
    workers: int = 0,
    bad: BadImages | None = None,
) -> TrainingBatches:
    """Shuffled, augmented batches; a batch of one sample is left out, because batch normalisation needs two.

    Raises:
        DataError: The augmentation does not suit the samples.
    """
    dataset = prepared(split, preprocessing, augmentation)
    return TrainingBatches(dataset, Shuffled(len(dataset), batch_size, seed), workers, bad)


class CalibrationBatches:
    """Batches of a seeded choice of training samples, without augmentation: inputs alone, or `labelled`.

    They can be iterated over more than once and are the same each time.

    Args:
        split: Training samples.
        preprocessing: How they are prepared for the model.
        images: How many to choose; all if there are fewer.
        batch_size: Samples per batch.
        seed: Seed of the choice.
        bad: Counts unreadable images, which are left out; without it the first is an error.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        images: int,
        batch_size: int,
        *,
        seed: int,
        bad: BadImages | None = None,
    ) -> None:
        total = len(split.labels)
        count = min(images, total)
        if count % batch_size == 1 and count > 1:
            count -= 1  # batch normalisation cannot measure a last batch of one image
        chosen = np.random.default_rng(seed).permutation(total)[:count]
        self._batches = evaluation_batches(split.subset(np.sort(chosen)), preprocessing, batch_size, bad=bad)

    @property
    def labelled(self) -> Batches:
        """The same batches as (inputs, labels)."""
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        """Yields inputs."""
        for batch, _ in self._batches:
            yield batch
