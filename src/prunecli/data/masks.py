"""Images with masks: reading the pairs, and applying the same transform to both with torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from prunecli.data.images import image_bytes, read_image
from prunecli.data.label_map import VOID, LabelMap
from prunecli.data.mask_survey import mask_values
from prunecli.data.splits import digest
from prunecli.errors import DataError

_SCALES = (0.5, 2.0)
"""Training images are scaled by a random factor in this range before they are cropped, as is usual."""


@dataclass(frozen=True, eq=False)
class MaskSplit:
    """Image files, each with a mask file.

    Attributes:
        images: Image files.
        masks: Their masks, in the same order.
        label_map: What the values in masks mean.
    """

    reads_files: ClassVar[bool] = True
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    label_map: LabelMap

    @property
    def labels(self) -> NDArray[np.int64]:
        """Zeros of shape (images,): an image with a mask has no class of its own."""
        return np.zeros(len(self.images), dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        """Reads the image at `index`.

        Raises:
            DataError: The file is not a readable image.
        """
        return read_image(self.images[index], "RGB")

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Reads the mask at `index`: class indices and `VOID`, shape (height, width).

        Raises:
            DataError: The file is not a mask, or has a number that is not a class.
        """
        path = self.masks[index]
        return self.label_map.classes_of(mask_values(path, colored=self.label_map.colored), path)

    def pair(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """Image and mask at `index`.

        Raises:
            DataError: They differ in size, or one cannot be read.
        """
        image, mask = self.image(index), self.mask(index)
        if image.size != mask.shape[::-1]:
            first, second = (f"{width}x{height}" for width, height in (image.size, mask.shape[::-1]))
            files = self.images[index], self.masks[index]
            raise DataError(f"{files[0]}: is {first} and its mask {files[1]} is {second}; make them the same size")
        return image, mask

    def subset(self, indices: NDArray[np.int64]) -> MaskSplit:
        """The pairs at `indices`."""
        return MaskSplit(tuple(self.images[i] for i in indices), tuple(self.masks[i] for i in indices), self.label_map)

    def fingerprint(self) -> str:
        """Hash of file names, file sizes and the meaning of values; pixels are not read."""
        files = [f"{path.name} {image_bytes(path)}" for path in (*self.images, *self.masks)]
        return digest("\n".join(files).encode(), self.label_map.codes.tobytes(), self.label_map.indices.tobytes())


class MaskDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a normalised image (C, H, W) and class indices (H, W) of one size.

    Args:
        split: Images and masks.
        transform: From `evaluation_transform` or `training_transform`.
        channels: 1 or 3.
    """

    def __init__(self, split: MaskSplit, transform: v2.Transform, channels: int) -> None:
        self._split, self._transform, self._mode = split, transform, "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._split.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self._split.pair(index)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        pixels, classes = self._transform(tv_tensors.Image(image), tv_tensors.Mask(torch.from_numpy(mask)))
        return pixels.as_subclass(Tensor), classes.as_subclass(Tensor).long()


def evaluation_transform(
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], interpolation: str
) -> v2.Transform:
    """Resizes to `size` (height, width), masks by nearest neighbour, and normalises images."""
    resize = v2.Resize(list(size), interpolation=InterpolationMode(interpolation), antialias=True)
    return v2.Compose([resize, *_normalised(mean, std)])


def training_transform(
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str,
    *,
    flip: bool,
    color_jitter: float,
) -> v2.Transform:
    """Scales and crops at random to `size` (height, width), mirrors and jitters colours; padding is `VOID`."""
    grey = [255 * value for value in mean]
    steps: list[v2.Transform] = [
        v2.ScaleJitter(size, scale_range=_SCALES, interpolation=InterpolationMode(interpolation), antialias=True),
        v2.RandomCrop(list(size), pad_if_needed=True, fill={tv_tensors.Image: grey, tv_tensors.Mask: VOID}),
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        steps.append(v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter))
    return v2.Compose([*steps, *_normalised(mean, std)])


def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> list[v2.Transform]:
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return [to_float, v2.Normalize(list(mean), list(std))]
