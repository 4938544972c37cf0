"""Images with boxes: what a split of them is, and the same transform for both, with torchvision's joint transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from prunecli.data.images import image_bytes, read_image
from prunecli.data.splits import Split, digest
from prunecli.errors import DataError

GREY = 114
"""What fills images up: the mean of natural images, as in YOLO. Networks that normalise see about zero."""
_SCALES = (0.75, 1.33)
"""Training images are scaled by a random factor in this range before they are cut or filled up again."""

BoxSample: TypeAlias = tuple[Any, dict[str, Tensor]]
"""A network's inputs, and what is in the image: a `prunecli.engine.detectors.base.Target`."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects in one image.

    Attributes:
        boxes: Left, top, right and bottom in pixels, shape (objects, 4), inside the image and not empty.
        labels: Class numbers, shape (objects,).
        ignored: Whether an object is to be left alone, such as a crowd, shape (objects,).
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


@runtime_checkable
class BoxSplit(Split, Protocol):
    """Images with boxes."""

    def annotated(self, index: int) -> tuple[Image.Image, Objects]:
        """Image and objects at `index`.

        Raises:
            UnreadableImage: The image cannot be read.
            DataError: The boxes do not belong to it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Annotation:
    """What a file says of one image.

    Attributes:
        objects: The objects; boxes in shares of the image where `size` is None and `shares` is set.
        size: Height and width that the file gives the image; None: none.
        shares: Whether boxes are shares of the image's width and height.
    """

    objects: Objects
    size: tuple[int, int] | None = None
    shares: bool = False


@dataclass(frozen=True, eq=False)
class FileBoxSplit:
    """Image files with annotations.

    Attributes:
        images: Image files.
        annotations: Their annotations, in the same order.
        class_names: Names of the classes, which the fingerprint covers.
    """

    reads_files: ClassVar[bool] = True
    images: tuple[Path, ...]
    annotations: tuple[Annotation, ...]
    class_names: tuple[str, ...] = ()

    @property
    def labels(self) -> NDArray[np.int64]:
        """Zeros of shape (images,): an image with boxes has no class of its own."""
        return np.zeros(len(self.images), dtype=np.int64)

    def annotated(self, index: int) -> tuple[Image.Image, Objects]:
        """Reads the image at `index`.

        Raises:
            UnreadableImage: The file is not a readable image.
            DataError: It has another size than its annotation says.
        """
        path, annotation = self.images[index], self.annotations[index]
        image = read_image(path, "RGB")
        if annotation.size not in (None, (image.height, image.width)):
            height, width = annotation.size or (0, 0)
            raise DataError(
                f"{path}: is {image.width}x{image.height} and its annotation says {width}x{height}; annotate the image "
                "as it is now"
            )
        objects = annotation.objects
        if annotation.shares:
            scale = np.array([image.width, image.height] * 2, dtype=np.float32)
            objects = Objects(objects.boxes * scale, objects.labels, objects.ignored)
        return image, objects

    def subset(self, indices: NDArray[np.int64]) -> FileBoxSplit:
        """The images at `indices`."""
        return FileBoxSplit(
            tuple(self.images[i] for i in indices), tuple(self.annotations[i] for i in indices), self.class_names
        )

    def fingerprint(self) -> str:
        """Hash of file names, file sizes, classes and boxes; pixels are not read."""
        files = [f"{path.name} {image_bytes(path)}" for path in self.images]
        own = [annotation.objects for annotation in self.annotations]
        parts = [part.tobytes() for o in own for part in (o.boxes, o.labels, o.ignored)]
        return digest("\n".join((*self.class_names, *files)).encode(), *parts)


@dataclass(frozen=True, eq=False)
class RenumberedSplit:
    """Images with boxes whose classes have other numbers.

    Attributes:
        split: The images.
        numbers: The new number of each class.
    """

    split: BoxSplit
    numbers: NDArray[np.int64]

    @property
    def reads_files(self) -> bool:
        """Whether the images are in files."""
        return bool(getattr(self.split, "reads_files", False))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Zeros of shape (images,)."""
        return self.split.labels

    def annotated(self, index: int) -> tuple[Image.Image, Objects]:
        """Image and objects at `index`, see `BoxSplit`."""
        image, objects = self.split.annotated(index)
        return image, Objects(objects.boxes, self.numbers[objects.labels], objects.ignored)

    def subset(self, indices: NDArray[np.int64]) -> RenumberedSplit:
        """The images at `indices`."""
        chosen = self.split.subset(indices)
        assert isinstance(chosen, BoxSplit), "a part of images with boxes has boxes"
        return RenumberedSplit(chosen, self.numbers)

    def fingerprint(self) -> str:
        """That of the images: what is on disk is the same."""
        return self.split.fingerprint()


@dataclass(frozen=True)
class BoxPreparation:
    """How images with boxes reach a network.

    Attributes:
        listed: As a list of images, not as one tensor.
        own_sizes: In their own sizes: the network resizes them itself.
    """

    listed: bool = False
    own_sizes: bool = False


class BoxDataset(Dataset[BoxSample]):
    """Normalised images (C, H, W) with targets whose boxes are in pixels of these.

    Args:
        split: Images and boxes.
        transform: From `box_transform`.
        channels: 1 or 3.
        listed: Whether an image comes in a list.
    """

    def __init__(self, split: BoxSplit, transform: BoxTransform, channels: int, *, listed: bool) -> None:
        self._split, self._transform, self._listed = split, transform, listed
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> BoxSample:
        image, objects = self._split.annotated(index)
        if image.mode != self._mode:
            image = image.convert(self._mode)
        pixels, target = self._transform(image, objects)
        return [pixels] if self._listed else pixels, target


@dataclass(frozen=True)
class BoxTransform:
    """Changes an image and its boxes alike, and normalises the image.

    Images keep their aspect: they are resized until they fit into `size`, and grey is added on the right or below. For
    training they are larger or smaller than that by a random factor, at a random place, and cut to the same size; an
    object whose centre is cut off is left out.

    Attributes:
        size: Height and width; None: every image keeps its own.
        mean: Per channel, pixels in 0..1.
        std: Per channel.
        interpolation: "bilinear" or "bicubic".
        random: Further changes of training images; None for evaluation.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    random: Sequence[v2.Transform] | None = None

    def __call__(self, image: Image.Image, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
        """The image, shape (C, H, W), and a target."""
        pixels: Any = tv_tensors.Image(image)
        boxes: Any = tv_tensors.BoundingBoxes(
            torch.from_numpy(objects.boxes.reshape(-1, 4)), format="XYXY", canvas_size=(image.height, image.width)
        )
        target: dict[str, Any] = {
            "boxes": boxes,
            "labels": torch.from_numpy(objects.labels),
            "ignored": torch.from_numpy(objects.ignored),
        }
        if self.random is None:
            pixels, target["boxes"], target["size"] = self._fitted(pixels, boxes)
        else:
            pixels, target = self._jittered(pixels, target)
        for transform in self.random or ():
            pixels, target = transform(pixels, target)
        pixels = functional.normalize(functional.to_dtype(pixels, torch.float32, scale=True), self.mean, self.std)
        return pixels.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in target.items()}

    def _fitted(self, pixels: Any, boxes: Any) -> tuple[Any, Any, Tensor]:
        """Image and boxes of the wanted size, and height and width of what is not filled up."""
        height, width = pixels.shape[-2:]
        if self.size is None:
            return pixels, boxes, torch.tensor([height, width])
        scale = min(self.size[0] / height, self.size[1] / width)
        inner = [
            min(limit, max(1, round(side * scale))) for limit, side in zip(self.size, (height, width), strict=True)
        ]
        padding = [0, 0, self.size[1] - inner[1], self.size[0] - inner[0]]
        boxes = functional.pad(functional.resize(boxes, inner), padding)
        return functional.pad(self._resized(pixels, inner), padding, fill=GREY), boxes, torch.tensor(inner)

    def _jittered(self, pixels: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Image and objects, scaled by a random factor and cut or filled up at a random place."""
        own = pixels.shape[-2:]
        whole = self.size or (int(own[0]), int(own[1]))
        factor = torch.empty(()).uniform_(*_SCALES).item() * min(whole[0] / own[0], whole[1] / own[1])
        inner = [max(1, round(side * factor)) for side in own]
        # Where the scaled image begins in the new one, or, if it is larger, before it.
        top, left = (round(torch.rand(()).item() * (space - side)) for space, side in zip(whole, inner, strict=True))
        boxes = functional.resize(target["boxes"], inner).as_subclass(Tensor) + torch.tensor([left, top, left, top])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        stays = ((centres >= 0) & (centres < torch.tensor([whole[1], whole[0]]))).all(dim=1)
        cut = boxes[stays].clamp(min=0).minimum(torch.tensor([whole[1], whole[0]] * 2, dtype=boxes.dtype))
        margins = [left, top, whole[1] - inner[1] - left, whole[0] - inner[0] - top]
        pixels = functional.pad(self._resized(pixels, inner), [max(margin, 0) for margin in margins], fill=GREY)
        pixels = functional.crop(pixels, max(-top, 0), max(-left, 0), *whole)
        return pixels, {
            "boxes": tv_tensors.BoundingBoxes(cut, format="XYXY", canvas_size=whole),
            "labels": target["labels"][stays],
            "ignored": target["ignored"][stays],
            "size": torch.tensor(whole),
        }

    def _resized(self, pixels: Any, size: list[int]) -> Any:
        interpolation = InterpolationMode(self.interpolation)
        return functional.resize(pixels, size, interpolation=interpolation, antialias=True)


def random_changes(*, flip: bool, color_jitter: float) -> tuple[v2.Transform, ...]:
    """What is done to training images besides scaling and cutting: they are mirrored, and their colours changed."""
    changes: list[v2.Transform] = []
    if flip:
        changes.append(v2.RandomHorizontalFlip())
    if color_jitter:
        changes.append(v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter))
    return tuple(changes)
