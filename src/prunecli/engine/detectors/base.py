"""What a detector is: a network that finds boxes, whatever its package calls its inputs, losses and outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from prunecli.inputs import Inputs, model_device
from prunecli.modes import same_modes

Target: TypeAlias = Mapping[str, Tensor]
"""The objects in one image, as a data set gives them.

    boxes: left, top, right and bottom in pixels of the image as the network takes it, shape (objects, 4).
    labels: Numbers of the classes, from 0, shape (objects,).
    ignored: Whether an object is one to be left alone: a crowd, or one marked as difficult, shape (objects,). It counts
        in no loss, and a box that finds it is neither right nor wrong.
    size: Height and width of the image without what was added to fill it up, shape (2,).
"""

Found: TypeAlias = Mapping[str, Tensor]
"""What a network finds in one image: `boxes` (n, 4) and `labels` (n,) as in `Target`, and `scores` (n,) in 0..1."""

_STOCHASTIC = ("Dropout", "DropPath", "StochasticDepth", "DropBlock")
"""Beginnings of the names of classes that draw at random while they train."""


class Detector(ABC):
    """How the detectors of one package are trained and asked.

    A batch is in the form that the networks take: a list of images (C, H, W) where `lists_images`, else one tensor
    (N, C, H, W). Targets are a list with one entry for each image.

    Attributes:
        package: What messages call it.
        lists_images: Whether networks take a list of images, which may differ in size.
        loss_needs_training_mode: Whether networks have a loss in training mode alone.
        first_category: Which of COCO's numbers the first class stands for in networks that keep these numbers and their
            gaps; None: they count the 80 classes instead.
    """

    package: ClassVar[str]
    lists_images: ClassVar[bool] = False
    loss_needs_training_mode: ClassVar[bool] = False
    first_category: ClassVar[int | None] = None

    @abstractmethod
    def num_classes(self, network: nn.Module) -> int:
        """How many kinds of objects a network tells apart; the background is none."""

    def own_size(self, network: nn.Module) -> tuple[int, int] | None:
        """Height and width that a network resizes a square image to; None if it does not say."""
        return None

    @abstractmethod
    def losses(self, network: nn.Module, inputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The package's own losses of a batch by name, weighted, so that their sum is what it minimises.

        Args:
            network: In training mode, where `loss_needs_training_mode`.
            inputs: A batch.
            targets: What is in its images; objects to be ignored are not among them.

        Raises:
            DataError: The network learns from more than boxes.
        """

    @abstractmethod
    def found(self, network: nn.Module, inputs: Any) -> list[Found]:
        """What a network in evaluation mode finds in each image of a batch, duplicates removed."""

    def example(self, shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
        """A random batch of one image of `shape` (C, H, W): pixels in 0..1 in a list, else normalised ones."""
        if self.lists_images:
            return [torch.rand(shape, generator=generator)]
        return torch.randn(1, *shape, generator=generator)

    @contextmanager
    def settled(self, network: nn.Module) -> Iterator[None]:
        """A context in which a network has losses and is otherwise as in evaluation mode.

        Normalisations use their running statistics and change none, nothing is dropped at random, and what is drawn at
        random anyway, such as the proposals that a loss is taken of, is the same every time. Afterwards all modes and
        the state of torch's generator are as they were.
        """
        device = model_device(network)
        with same_modes(network), torch.random.fork_rng([device] if device.type == "cuda" else []):
            network.eval()
            if self.loss_needs_training_mode:
                for module in network.modules():
                    module.training = not _changes_in_training(module)
            torch.manual_seed(0)
            yield


def _changes_in_training(module: nn.Module) -> bool:
    """Whether a module computes something else while it trains: normalisations with statistics, and dropout."""
    return hasattr(module, "running_mean") or type(module).__name__.startswith(_STOCHASTIC)


def without_ignored(target: Target) -> dict[str, Tensor]:
    """Boxes and labels of the objects that count."""
    counts = ~target["ignored"]
    return {"boxes": target["boxes"][counts], "labels": target["labels"][counts]}


def centred(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes as centre, width and height in shares of the image, shape (objects, 4)."""
    first, last = boxes[:, :2], boxes[:, 2:]
    return torch.cat([(first + last) / 2, last - first], dim=1) / boxes.new_tensor([width, height, width, height])
