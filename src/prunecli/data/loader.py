"""From splits to batches: timm's transforms, torch's loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunecli.data.masks import MaskDataset, MaskSplit, evaluation_transform, training_transform
from prunecli.data.splits import Split
from prunecli.errors import DataError

_SMALL = 64
"""Images up to this size are shifted rather than cropped and zoomed, as is usual on CIFAR."""


class Batches(DataLoader[tuple[Tensor, Tensor]]):
    """A loader whose workers' complaints about data stay one line: torch puts a traceback around them."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            last = str(error).strip().splitlines()[-1]
            raise DataError(last.removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from error


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its images.

    Attributes:
        size: Channels, height, width.
        mean: Per channel, pixels in 0..1.
        std: Per channel.
        interpolation: "bilinear" or "bicubic".
        crop_pct: Share of the resized image that the centre crop keeps.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; the defaults shift and, where it makes sense, mirror.

    Images with masks are scaled and cropped too; of the others they take `flip` and `color_jitter`.
    """

    flip: bool = True
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0


class _SplitDataset(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, split: Split, transform: Any, channels: int) -> None:
        self._split, self._transform = split, transform
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self._split.image(index)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        return self._transform(image), torch.tensor(self._split.labels[index])


def evaluation_batches(split: Split, preprocessing: Preprocessing, batch_size: int, workers: int = 0) -> Batches:
    """All images of `split` in order, resized, centre-cropped (not where there are masks) and normalised."""
    dataset = _dataset(split, preprocessing, None)
    return Batches(dataset, batch_size=batch_size, num_workers=workers, pin_memory=torch.cuda.is_available())


def training_batches(
    split: Split,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    *,
    seed: int,
    workers: int = 0,
) -> Batches:
    """Shuffled, augmented batches; a last batch of one image is left out, as batch normalisation needs two."""
    dataset = _dataset(split, preprocessing, augmentation)
    return Batches(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        drop_last=len(dataset) % batch_size == 1 and len(dataset) > 1,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


class CalibrationBatches:
    """Batches from a seeded choice of training images, without augmentation; labels only if asked for.

    They can be gone through more than once and are the same each time.

    Args:
        split: Training images.
        preprocessing: How the model wants them.
        images: How many to choose; fewer where there are fewer.
        batch_size: Images per batch.
        seed: Seed of the choice.
    """

    def __init__(self, split: Split, preprocessing: Preprocessing, images: int, batch_size: int, *, seed: int) -> None:
        total = len(split.labels)
        count = min(images, total)
        if count % batch_size == 1 and count > 1:
            count -= 1  # batch normalisation cannot measure a last batch of one image
        chosen = np.random.default_rng(seed).permutation(total)[:count]
        self._batches = evaluation_batches(split.subset(np.sort(chosen)), preprocessing, batch_size)

    @property
    def labelled(self) -> Batches:
        """The same batches as (images, labels), for what looks at labels too."""
        return self._batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yields images of shape (N, C, H, W)."""
        for batch, _ in self._batches:
            yield batch


def _dataset(
    split: Split, preprocessing: Preprocessing, augmentation: Augmentation | None
) -> _SplitDataset | MaskDataset:
    channels, height, width = preprocessing.size
    if not isinstance(split, MaskSplit):
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
