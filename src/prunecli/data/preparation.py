"""How samples are prepared for a model: transforms of images, masks and recordings, as datasets of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from prunecli.data.boxes import BoxDataset, BoxPreparation, BoxSplit, BoxTransform, Objects, random_changes
from prunecli.data.events import Binning
from prunecli.data.masks import MaskDataset, MaskSplit, evaluation_transform, training_transform
from prunecli.data.recordings import EventDataset, EventSplit
from prunecli.data.splits import ImageSplit, SampleSplit, Split, TaskName, TokenSplit, UnevenSplit
from prunecli.errors import DataError

_SMALL = 64
"""Images up to this size are shifted rather than cropped and zoomed, as is usual on CIFAR."""
Sample: TypeAlias = tuple[Any, Any]
"""A network's inputs and a label, both without a batch dimension; labels are tensors, or mappings of tensors."""


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a model.

    Attributes:
        size: Channels, height, width.
        mean: Per channel, pixels in 0..1.
        std: Per channel.
        interpolation: "bilinear" or "bicubic".
        crop_pct: Share of the resized image that the centre crop keeps.
        crop_mode: What happens to images of another shape: "center", "squash" or "border", as timm names it.
        frames: How recordings of events become frames; their counts are not normalised. None for images.
        boxes: How images with boxes reach a detector.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    frames: Binning | None = None
    boxes: BoxPreparation | None = None


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; the defaults shift and, where it makes sense, mirror.

    Images with masks or boxes are scaled and cropped as well, and take `flip` and `color_jitter` only; recordings of
    events take `flip` only. A `SampleSplit` takes none.
    """

    flip: bool = True
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0


class _ImageDataset(Dataset[Sample]):
    def __init__(self, split: ImageSplit, transform: Any, channels: int) -> None:
        self._split, self._transform = split, transform
        self._mode = _mode(channels)

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> Sample:
        image = self._split.image(index)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        return self._transform(image), torch.tensor(self._split.labels[index])


class _SampleDataset(Dataset[Sample]):
    def __init__(self, split: SampleSplit) -> None:
        self._split = split
        self.stacked = split.stacked if isinstance(split, UnevenSplit) else None
        """From samples to a batch, where they are not all alike."""

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> Sample:
        return self._split.sample(index), torch.tensor(self._split.labels[index])


class _TokenDataset(Dataset[Sample]):
    def __init__(self, split: TokenSplit, *, training: bool) -> None:
        self._split, self._training = split, training
        self.stacked, self.stacked_labels = split.stacked, split.stacked_labels

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> Sample:
        return self._split.pair(index, training=self._training)


PreparedSamples: TypeAlias = _ImageDataset | _SampleDataset | _TokenDataset | MaskDataset | BoxDataset | EventDataset


def prepared(split: Split, preprocessing: Preprocessing, augmentation: Augmentation | None) -> PreparedSamples:
    """A split's samples with labels, prepared for a model.

    Args:
        split: The samples.
        preprocessing: How the model wants them.
        augmentation: Random changes; None for evaluation.

    Raises:
        DataError: The augmentation does not suit the samples.
    """
    channels, height, width = preprocessing.size
    size = (height, width)
    if isinstance(split, EventSplit):
        assert preprocessing.frames is not None, "recordings need to become frames"
        flip = augmentation is not None and augmentation.flip
        if augmentation not in (None, Augmentation(flip)):
            raise DataError(
                "--auto-augment, --color-jitter and --random-erasing are for images and the data set has recordings of "
                "events: leave them out (frames are shifted and, where it makes sense, mirrored)"
            )
        return EventDataset(split, preprocessing.frames, size, shift=augmentation is not None, flip=flip)
    if isinstance(split, MaskSplit):
        if augmentation is None:
            return MaskDataset(split, _mask_transform(preprocessing), channels)
        common = (size, preprocessing.mean, preprocessing.std, preprocessing.interpolation)
        jitter = augmentation.color_jitter
        return MaskDataset(split, training_transform(*common, flip=augmentation.flip, color_jitter=jitter), channels)
    if isinstance(split, BoxSplit):
        return _boxed(split, preprocessing, augmentation)
    if isinstance(split, SampleSplit):
        if augmentation is not None and augmentation != Augmentation(augmentation.flip):
            raise DataError(
                "--auto-augment, --color-jitter and --random-erasing are for images, and the samples of this data set "
                "are taken as they are: leave them out"
            )
        if isinstance(split, TokenSplit):
            return _TokenDataset(split, training=augmentation is not None)
        return _SampleDataset(split)
    assert isinstance(split, ImageSplit), "a split has images, recordings or samples"
    return _ImageDataset(split, _transform(preprocessing, augmentation), channels)


def picture_transform(
    preprocessing: Preprocessing, task: TaskName
) -> Callable[[Image.Image], tuple[Any, tuple[int, int]]]:
    """What `prepared` does to the images of an evaluation, for one that has no label.

    Args:
        preprocessing: How the model wants images.
        task: What the model finds: "classification", "segmentation" or "detection".

    Returns:
        A function from an image to a network's inputs, without a batch dimension, and to height and width of what is
        the image in them: a detector's are filled up on the right or below.
    """
    mode = _mode(preprocessing.size[0])
    if task == "detection":
        return _box_picture(preprocessing, mode)
    transform = _mask_transform(preprocessing) if task == "segmentation" else _transform(preprocessing, None)

    def changed(image: Image.Image) -> tuple[Any, tuple[int, int]]:
        converted: Any = image if image.mode == mode else image.convert(mode)
        if task == "segmentation":
            converted = tv_tensors.Image(converted)
        return transform(converted).as_subclass(torch.Tensor), preprocessing.size[1:]

    return changed


def _box_picture(preprocessing: Preprocessing, mode: str) -> Callable[[Image.Image], tuple[Any, tuple[int, int]]]:
    transform, listed = _box_transform(preprocessing, None), (preprocessing.boxes or BoxPreparation()).listed
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))

    def changed(image: Image.Image) -> tuple[Any, tuple[int, int]]:
        pixels, target = transform(image if image.mode == mode else image.convert(mode), nothing)
        height, width = target["size"].tolist()
        return [pixels] if listed else pixels, (height, width)

    return changed


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _mask_transform(preprocessing: Preprocessing) -> Any:
    own = preprocessing
    return evaluation_transform((own.size[1], own.size[2]), own.mean, own.std, own.interpolation)


def _boxed(split: BoxSplit, preprocessing: Preprocessing, augmentation: Augmentation | None) -> BoxDataset:
    random = None
    if augmentation is not None:
        random = random_changes(flip=augmentation.flip, color_jitter=augmentation.color_jitter)
    listed = (preprocessing.boxes or BoxPreparation()).listed
    return BoxDataset(split, _box_transform(preprocessing, random), preprocessing.size[0], listed=listed)


def _box_transform(preprocessing: Preprocessing, random: Any) -> BoxTransform:
    own_sizes = (preprocessing.boxes or BoxPreparation()).own_sizes
    return BoxTransform(
        None if own_sizes else preprocessing.size[1:],
        preprocessing.mean,
        preprocessing.std,
        preprocessing.interpolation,
        random,
    )


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
        return create_transform(
            **common, is_training=False, crop_pct=preprocessing.crop_pct, crop_mode=preprocessing.crop_mode
        )
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
