"""From splits to batches: timm's transforms, torch's loader."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from prunecli.data.epochs import BatchPlan, InOrder, Shuffled, seeded
from prunecli.data.events import Binning
from prunecli.data.images import BadImages, UnreadableImage
from prunecli.data.masks import MaskDataset, MaskSplit, evaluation_transform, training_transform
from prunecli.data.recordings import EventDataset, EventSplit
from prunecli.data.splits import ImageSplit, Split
from prunecli.engine.resources import as_loader_error
from prunecli.errors import DataError, PruneError, ResourceError

_SMALL = 64
"""Images up to this size are shifted rather than cropped and zoomed, as is usual on CIFAR."""


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        size: Channels, height, width.
        mean: Per channel, pixels in 0..1.
        std: Per channel.
        interpolation: "bilinear" or "bicubic".
        crop_pct: Share of the resized image that the centre crop keeps.
        frames: How recordings of events become frames; their counts are not normalised. None for images.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    frames: Binning | None = None


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; the defaults shift and, where it makes sense, mirror.

    Images with masks are scaled and cropped too; of the others they take `flip` and `color_jitter`. Recordings of
    events take `flip`.
    """

    flip: bool = True
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0


class _SplitDataset(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, split: ImageSplit, transform: Any, channels: int) -> None:
        self._split, self._transform = split, transform
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._split.image(index)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        return self._transform(image), torch.tensor(self._split.labels[index])


class _PlannedDataset(Dataset[Any]):
    """Loads a batch as planned: what can be read of it, and the files that cannot with the reasons."""

    def __init__(self, images: _Samples) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, plan: BatchPlan) -> _Loaded:
        samples: list[tuple[Tensor, Tensor]] = []
        unreadable: _Unreadable = []
        with seeded(plan.seed):
            for index in plan.indices:
                try:
                    samples.append(self._images[index])
                except UnreadableImage as error:
                    unreadable.append((str(error.path), error.reason, error.kind))
        return samples, unreadable


_Samples = _SplitDataset | MaskDataset | EventDataset
_Unreadable = list[tuple[str, str, str]]
"""File, reason and what it should have been."""
_Loaded = tuple[list[tuple[Tensor, Tensor]], _Unreadable]


def _collate(loaded: Any) -> tuple[Any, _Unreadable]:
    samples, unreadable = loaded
    return (default_collate(samples) if samples else None), unreadable


@contextmanager
def _no_signals() -> Iterator[None]:
    """Keeps torch from raising an error, wherever the program then is, when a process that loads has died.

    It is noticed all the same, within five seconds of waiting for a batch of that process.
    """
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


class Batches:
    """Batches of images (N, C, H, W), or frames of events (N, T, 2, H, W), and labels, the same ones each time.

    Unreadable images are left out as far as `bad` allows; a batch that nothing is left of is passed over. The global
    random generators are left as they are.

    Attributes:
        batch_size: Images in a full batch.

    Args:
        dataset: Images and labels.
        order: The batches to be.
        workers: Processes that load; 0 loads in this one.
        bad: Counts what cannot be read; without it the first one is an error.
        keep_workers: Whether the processes live on when all batches have been given.
    """

    def __init__(
        self,
        dataset: _Samples,
        order: InOrder | Shuffled,
        workers: int,
        bad: BadImages | None,
        *,
        keep_workers: bool = False,
    ) -> None:
        self._bad = bad if bad is not None else BadImages()
        self._order, self.batch_size = order, order.batch_size
        self._loader: DataLoader[Any] = DataLoader(
            _PlannedDataset(dataset),
            batch_sampler=order,  # type: ignore[arg-type]
            collate_fn=_collate,
            num_workers=workers,
            generator=torch.Generator(),  # each iteration draws a number, else from the global generator
            pin_memory=torch.cuda.is_available(),
            persistent_workers=keep_workers and workers > 0,
        )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images and labels.

        Raises:
            DataError: A file or mask is wrong, or more images cannot be read than may be left out.
            ResourceError: A process that loads has died, or memory ran out.
        """
        for batch in self._load():
            if batch is not None:
                yield batch

    def _load(self) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Batches as they are planned, None for one that nothing could be read of."""
        with _no_signals():
            batches = iter(self._loader)
        while True:
            try:
                batch, unreadable = next(batches)
            except StopIteration:
                return
            except PruneError as error:
                last = str(error).strip().splitlines()[-1]  # a worker puts a traceback before it
                kind = type(error) if isinstance(error, ResourceError) else DataError
                raise kind(last.partition(f"{type(error).__name__}: ")[2] or last) from error
            except (RuntimeError, OSError, EOFError, MemoryError) as error:
                found = as_loader_error(error, self.batch_size)
                if found is None:
                    raise
                raise found from error
            for path, reason, kind in unreadable:
                self._bad.add(path, reason, kind)
            yield (batch[0], batch[1]) if batch is not None else None


class TrainingBatches(Batches):
    """Shuffled, augmented batches: an epoch's order and augmentation follow from the seed and its number alone.

    So they do not depend on the number of workers or on what was loaded before, and an epoch can be entered anywhere.
    Iterating gives the epoch after the one that was given last.

    Attributes:
        position: Index in its epoch of the batch after the one that was given last.
    """

    def __init__(self, dataset: _Samples, order: Shuffled, workers: int, bad: BadImages | None) -> None:
        super().__init__(dataset, order, workers, bad, keep_workers=True)
        self._shuffled = order
        self._next = 1
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of the next epoch."""
        return self.epoch(self._next)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of epoch `number`, counted from 1, from that with index `first` on; none before is loaded.

        Where unreadable images are left out there may be fewer than `len` says; `position` counts those as well.

        Raises:
            DataError: A file or mask is wrong, or more images cannot be read than may be left out.
            ResourceError: A process that loads has died, or memory ran out.
        """
        self._next = number + 1
        return self._from(number, first)

    def _from(self, number: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        self._shuffled.epoch, self._shuffled.first, self.position = number, first, first
        fewest = min(2, self.batch_size)
        for index, batch in enumerate(self._load(), start=first):
            if batch is not None and len(batch[1]) >= fewest:
                self.position = index + 1
                yield batch


def evaluation_batches(
    split: Split, preprocessing: Preprocessing, batch_size: int, workers: int = 0, *, bad: BadImages | None = None
) -> Batches:
    """All images of `split` in order, resized, centre-cropped (not where there are masks) and normalised.

    Of recordings of events the frames, as `preprocessing.frames` says.
    """
    dataset = _dataset(split, preprocessing, None)
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
    """Shuffled, augmented batches; one of a single image is left out, as batch normalisation needs two."""
    dataset = _dataset(split, preprocessing, augmentation)
    return TrainingBatches(dataset, Shuffled(len(dataset), batch_size, seed), workers, bad)


class CalibrationBatches:
    """Batches from a seeded choice of training images, without augmentation; labels only if asked for.

    They can be gone through more than once and are the same each time.

    Args:
        split: Training images.
        preprocessing: How the model wants them.
        images: How many to choose; fewer where there are fewer.
        batch_size: Images per batch.
        seed: Seed of the choice.
        bad: Counts images that cannot be read, which are left out; without it one is an error.
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
        """The same batches as (images, labels), for what looks at labels too."""
        return self._batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yields images of shape (N, C, H, W), or frames (N, T, 2, H, W)."""
        for batch, _ in self._batches:
            yield batch


def _dataset(split: Split, preprocessing: Preprocessing, augmentation: Augmentation | None) -> _Samples:
    channels, height, width = preprocessing.size
    if isinstance(split, EventSplit):
        assert preprocessing.frames is not None, "recordings need to become frames"
        shifted = augmentation is not None
        if augmentation is not None and augmentation != Augmentation(augmentation.flip):
            raise DataError(
                "--auto-augment, --color-jitter and --random-erasing are for images and the data set has recordings of "
                "events: leave them out (frames are shifted and, where it makes sense, mirrored)"
            )
        flip = augmentation is not None and augmentation.flip
        return EventDataset(split, preprocessing.frames, (height, width), shift=shifted, flip=flip)
    if not isinstance(split, MaskSplit):
        assert isinstance(split, ImageSplit), "a split has images or recordings"
        return _SplitDataset(split, _transform(preprocessing, augmentation), channels)
    common = ((height, width), preprocessing.mean, preprocessing.std, preprocessing.interpolation)
    if augmentation is None:
        return MaskDataset(split, evaluation_transform(*common), channels)
    jitter = augmentation.color_jitter
    return MaskDataset(split, training_transform(*common, flip=augmentation.flip, color_jitter=jitter), channels)


def _transform(preprocessing: Preprocessing, augmentation: Augmentation | None) -> Any:
    from timm.data import create_transform
    from torchvision import transforms

    common: dict[str, Any] = {
        "input_size": preprocessing.size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
    }
    if augmentation is None:
        return create_transform(**common, is_training=False, crop_pct=preprocessing.crop_pct)
    transform = create_transform(
        **common,
        is_training=True,
        hflip=0.5 if augmentation.flip else 0.0,
        color_jitter=augmentation.color_jitter or None,
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.random_erasing,
    )
    height, width = preprocessing.size[1:]
    if max(height, width) <= _SMALL:
        resize = transforms.Resize((height, width))
        transform.transforms[0] = transforms.Compose(
            [resize, transforms.RandomCrop((height, width), padding=max(1, height // 8))]
        )
    return transform
