"""What networks say about a picture: classes, a mask or boxes, as rows, documents and comparisons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from prunecli.data.splits import TaskName
from prunecli.engine.detectors.base import Detector, Found
from prunecli.errors import ModelError
from prunecli.inputs import call, logits
from prunecli.models.scoring import scored

_SAME_OBJECT = 0.5
"""Least overlap (intersection over union) of two boxes that mean one object, as in Pascal VOC."""
_LEAST_SHARE = 0.005
"""Share of the pixels from which a table names a class of a mask."""


@dataclass(frozen=True)
class Frame:
    """A picture and what became of it in a network's inputs.

    Attributes:
        size: Height and width of the picture.
        inner: Height and width of what is the picture in the inputs.
    """

    size: tuple[int, int]
    inner: tuple[int, int]


@dataclass(frozen=True)
class Likeness:
    """How alike two answers are.

    Attributes:
        agree: Whether they say the same.
        share: Share of the pixels with the same class, of masks.
    """

    agree: bool
    share: float | None = None


class Answer(ABC):
    """What a network says about one picture."""

    @abstractmethod
    def document(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data."""

    @abstractmethod
    def cells(self, names: Sequence[str]) -> tuple[str, ...]:
        """Cells of a table under the columns of its `Kind`."""

    @abstractmethod
    def short(self, names: Sequence[str]) -> tuple[str, ...]:
        """The same where it stands beside another answer, under `Kind.short`."""

    @abstractmethod
    def likeness(self, other: Any) -> Likeness:
        """How alike this answer and that of another network about the same picture are."""


@dataclass(frozen=True)
class BestClasses(Answer):
    """The likeliest classes.

    Attributes:
        numbers: Class numbers, the likeliest first.
        shares: Their probabilities.
    """

    numbers: tuple[int, ...]
    shares: tuple[float, ...]

    def document(self, names: Sequence[str]) -> dict[str, Any]:
        """Classes with probabilities."""
        pairs = zip(self.numbers, self.shares, strict=True)
        return {"classes": [{"class": names[n], "number": n, "probability": share} for n, share in pairs]}

    def cells(self, names: Sequence[str]) -> tuple[str, ...]:
        """The likeliest class with its probability, and the others."""
        others = zip(self.numbers[1:], self.shares[1:], strict=True)
        return (*self.short(names), ", ".join(f"{names[number]} {100 * share:.1f}%" for number, share in others))

    def short(self, names: Sequence[str]) -> tuple[str, ...]:
        """The likeliest class with its probability."""
        return names[self.numbers[0]], f"{100 * self.shares[0]:.1f}"

    def likeness(self, other: BestClasses) -> Likeness:
        """Whether the likeliest class is the same."""
        return Likeness(self.numbers[0] == other.numbers[0])


@dataclass(frozen=True, eq=False)
class Mask(Answer):
    """A class for every pixel.

    Attributes:
        classes: Class numbers, shape (height, width) of the picture.
    """

    classes: NDArray[np.uint16]

    def shares(self) -> dict[int, float]:
        """Share of the pixels of every class that occurs, the largest first."""
        numbers, counts = np.unique(self.classes, return_counts=True)
        shares = dict(zip(numbers.tolist(), (counts / self.classes.size).tolist(), strict=True))
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def document(self, names: Sequence[str]) -> dict[str, Any]:
        """Shares of the classes that occur."""
        return {"pixels": [{"class": names[n], "number": n, "share": share} for n, share in self.shares().items()]}

    def cells(self, names: Sequence[str]) -> tuple[str, ...]:
        """Shares of the larger classes."""
        named = [f"{names[n]} {100 * share:.1f}%" for n, share in self.shares().items() if share >= _LEAST_SHARE]
        return (", ".join(named),)

    def short(self, names: Sequence[str]) -> tuple[str, ...]:
        """As `cells`."""
        return self.cells(names)

    def likeness(self, other: Mask) -> Likeness:
        """Share of the pixels with the same class."""
        share = float((self.classes == other.classes).mean())
        return Likeness(share == 1, share)


@dataclass(frozen=True, eq=False)
class Boxes(Answer):
    """Objects.

    Attributes:
        boxes: Left, top, right and bottom in pixels of the picture, shape (objects, 4), the surest object first.
        numbers: Their class numbers, shape (objects,).
        scores: How sure the network is, shape (objects,).
    """

    boxes: Tensor
    numbers: Tensor
    scores: Tensor

    def document(self, names: Sequence[str]) -> dict[str, Any]:
        """Boxes with classes and scores."""
        rows = zip(self.boxes.tolist(), self.numbers.tolist(), self.scores.tolist(), strict=True)
        return {
            "objects": [
                {"class": names[number], "number": number, "score": score, "box": [round(side, 2) for side in box]}
                for box, number, score in rows
            ]
        }

    def cells(self, names: Sequence[str]) -> tuple[str, ...]:
        """How many objects of which class there are."""
        counts = Counter(names[number] for number in self.numbers.tolist())
        return str(len(self.numbers)), ", ".join(f"{count} {name}" for name, count in counts.items())

    def short(self, names: Sequence[str]) -> tuple[str, ...]:
        """As `cells`."""
        return self.cells(names)

    def likeness(self, other: Boxes) -> Likeness:
        """Whether both found the same objects: each has one of the same class in about the same place."""
        if len(self.numbers) != len(other.numbers):
            return Likeness(False)
        overlaps = box_iou(self.boxes, other.boxes)
        overlaps[self.numbers[:, None] != other.numbers[None]] = 0
        for row in range(len(overlaps)):
            best = int(overlaps[row].argmax())
            if overlaps[row, best] < _SAME_OBJECT:
                return Likeness(False)
            overlaps[:, best] = 0
        return Likeness(True)


class Kind(ABC):
    """What one network finds in pictures.

    Attributes:
        task: As data sets call it.
        columns: Headings of `Answer.cells`.
        short: Headings of `Answer.short`.
        numeric: Which of `columns` are numbers.
        agreeing: What two answers that agree have in common, for people.
        classes: How many classes there are.
    """

    task: ClassVar[TaskName]
    columns: ClassVar[tuple[str, ...]]
    short: ClassVar[tuple[str, ...]]
    numeric: ClassVar[tuple[int, ...]] = ()
    agreeing: ClassVar[str] = ""
    classes: int

    @abstractmethod
    def answers(self, network: nn.Module, inputs: Any, frames: Sequence[Frame]) -> list[Answer]:
        """Runs a network in evaluation mode on a batch.

        Raises:
            ModelError: Its scores are no numbers.
        """


@dataclass(frozen=True)
class Classes(Kind):
    """The likeliest `top` of `classes` classes."""

    classes: int
    top: int
    task: ClassVar[TaskName] = "classification"
    columns: ClassVar[tuple[str, ...]] = ("class", "%", "then")
    short: ClassVar[tuple[str, ...]] = ("class", "%")
    numeric: ClassVar[tuple[int, ...]] = (1,)
    agreeing: ClassVar[str] = "the same first class"

    def answers(self, network: nn.Module, inputs: Any, frames: Sequence[Frame]) -> list[Answer]:
        """Softmax of the scores."""
        shares = _known(scored(network, inputs).scores.float().softmax(dim=1))
        best = shares.topk(min(self.top, shares.shape[1]), dim=1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [BestClasses(tuple(numbers), tuple(values)) for numbers, values in rows]


@dataclass(frozen=True)
class Masks(Kind):
    """One of `classes` classes for every pixel."""

    classes: int
    task: ClassVar[TaskName] = "segmentation"
    columns: ClassVar[tuple[str, ...]] = ("pixels",)
    short: ClassVar[tuple[str, ...]] = ("pixels",)
    agreeing: ClassVar[str] = "the same class at every pixel"

    def answers(self, network: nn.Module, inputs: Any, frames: Sequence[Frame]) -> list[Answer]:
        """The best class at the resolution of an evaluation, enlarged by the nearest pixel."""
        scores = _known(logits(call(network, inputs))).float()
        size = inputs.shape[-2:]
        if scores.shape[-2:] != size:
            scores = functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        found = scores.argmax(dim=1).cpu().numpy().astype(np.uint16)
        return [Mask(_resized(classes, frame.size)) for classes, frame in zip(found, frames, strict=True)]


@dataclass(frozen=True)
class Objects(Kind):
    """Boxes with a score of at least `least`, of `classes` classes, as `detector` finds them."""

    classes: int
    detector: Detector
    least: float
    task: ClassVar[TaskName] = "detection"
    columns: ClassVar[tuple[str, ...]] = ("objects", "classes")
    short: ClassVar[tuple[str, ...]] = ("objects", "classes")
    numeric: ClassVar[tuple[int, ...]] = (0,)
    agreeing: ClassVar[str] = "the same objects"

    def answers(self, network: nn.Module, inputs: Any, frames: Sequence[Frame]) -> list[Answer]:
        """What the network finds, without what it finds in the margin, in pixels of the picture."""
        found = self.detector.found(network, inputs)
        return [self._boxes(entry, frame) for entry, frame in zip(found, frames, strict=True)]

    def _boxes(self, found: Found, frame: Frame) -> Boxes:
        scores = _known(found["scores"].float()).cpu()
        (height, width), (inner_height, inner_width) = frame.size, frame.inner
        scale = torch.tensor([width / inner_width, height / inner_height] * 2)
        boxes = found["boxes"].float().cpu() * scale
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=boxes.dtype))
        there = (scores >= self.least) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        order = scores[there].argsort(descending=True, stable=True)
        return Boxes(boxes[there][order], found["labels"].cpu()[there][order], scores[there][order])


def _known(scores: Tensor) -> Tensor:
    if torch.isnan(scores).any():
        raise ModelError("the network's scores are not numbers (NaN), so they say nothing")
    return scores


def _resized(classes: NDArray[np.uint16], size: tuple[int, int]) -> NDArray[np.uint16]:
    if classes.shape == size:
        return classes
    # Every class stays one: nothing between two classes means anything.
    image = Image.fromarray(classes.astype(np.int32)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(image).astype(np.uint16)
