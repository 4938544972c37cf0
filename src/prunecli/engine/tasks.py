"""What scores are for: the loss they are trained with and the figures they are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
from timm.utils.metrics import accuracy
from torch import Tensor

from prunecli.errors import RecipeError

IGNORED = 255
"""Class index of pixels that count nowhere."""


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` images; `loss` is the mean cross-entropy in nats.

    `class_hits` are the images of each class whose best score was right, of `class_images`.
    """

    top1: float
    top5: float
    loss: float
    images: int
    class_hits: tuple[int, ...] = ()
    class_images: tuple[int, ...] = ()
    score_name: ClassVar[str] = "top1"
    score_label: ClassVar[str] = "top-1"

    @property
    def score(self) -> float:
        """What epochs are chosen on."""
        return self.top1

    @property
    def mean_class_recall(self) -> float:
        """Mean over the classes that occur of the share of their images that was right, in percent."""
        shares = [hits / images for hits, images in zip(self.class_hits, self.class_images, strict=True) if images]
        return 100 * sum(shares) / max(len(shares), 1)


@dataclass(frozen=True)
class SegmentationAccuracy:
    """Percentages over all pixels of `images` images that have a class; `loss` is the mean cross-entropy in nats.

    Attributes:
        miou: Intersection over union, averaged over the classes that occur in masks or predictions.
        pixel_accuracy: Share of the pixels with the right class.
        class_iou: Intersection over union of every class; None for one that does not occur.
        loss: Per pixel.
        images: How many.
    """

    miou: float
    pixel_accuracy: float
    class_iou: tuple[float | None, ...]
    loss: float
    images: int
    score_name: ClassVar[str] = "miou"
    score_label: ClassVar[str] = "mIoU"

    @property
    def score(self) -> float:
        """What epochs are chosen on."""
        return self.miou


Figures = Accuracy | SegmentationAccuracy
Found = TypeVar("Found", covariant=True)


class Meter(Protocol[Found]):
    """Adds batches up to figures."""

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """One batch: scores as the network gives them, labels on the same device."""
        ...

    def compute(self) -> Found:
        """Figures of everything so far."""
        ...


class Judge(Protocol[Found]):
    """What scores are judged by."""

    def meter(self, device: torch.device) -> Meter[Found]:
        """A new meter."""
        ...


class Task(Judge[Figures], Protocol):
    """How scores are compared with labels, in training too."""

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Mean loss of a batch."""
        ...

    def divergence(self, scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """KL(wanted || scores) of scores softened by `temperature`, averaged over what is classified."""
        ...


class Classification:
    """Scores of shape (N, classes), labels of shape (N,) or, mixed, (N, classes)."""

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy."""
        # Mixed labels are already smoothed by timm.
        smoothing = 0.0 if labels.is_floating_point() else label_smoothing
        return F.cross_entropy(scores, labels, label_smoothing=smoothing)

    def divergence(self, scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Per image."""
        return _divergence(scores, wanted, temperature) / len(scores)

    def meter(self, device: torch.device) -> Meter[Accuracy]:
        """Counts top-1 and top-5."""
        return _AccuracyMeter()


class Segmentation:
    """Scores of shape (N, classes, h, w), enlarged to labels of shape (N, H, W) in which 255 is void.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy per pixel that is not void; 0 for a batch of void alone."""
        total = F.cross_entropy(
            enlarged(scores, labels), labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (labels != IGNORED).sum().clamp(min=1)

    def divergence(self, scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """Per score, at the resolution the network gives them."""
        return _divergence(scores, enlarged(wanted, scores[:, 0]), temperature) / scores[:, 0].numel()

    def meter(self, device: torch.device) -> Meter[SegmentationAccuracy]:
        """Counts a confusion matrix.

        Raises:
            RecipeError: torchmetrics is not installed.
        """
        return _PixelMeter(self._num_classes, device)


def enlarged(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores (N, classes, h, w) interpolated to the height and width of `labels`, shape (N, H, W)."""
    if scores.shape[-2:] == labels.shape[-2:]:
        return scores
    return F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def _divergence(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    given, target = (F.log_softmax(tensor / temperature, dim=1) for tensor in (scores, wanted))
    return F.kl_div(given, target, reduction="sum", log_target=True)


class _AccuracyMeter:
    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # added up on the CPU in float64, which not every accelerator has
        self._images = 0
        self._by_class: Tensor | int = 0

    def update(self, scores: Tensor, labels: Tensor) -> None:
        top1, top5 = accuracy(scores, labels, topk=(1, 5))
        right = scores.argmax(dim=1) == labels
        counts = [torch.bincount(chosen, minlength=scores.shape[1]) for chosen in (labels[right], labels)]
        self._by_class = self._by_class + torch.stack(counts).cpu()
        loss = F.cross_entropy(scores, labels)
        self._sums.append(torch.stack([top1.to(loss), top5.to(loss), loss]) * len(labels))
        self._images += len(labels)

    def compute(self) -> Accuracy:
        totals = torch.stack(self._sums).cpu().double().sum(dim=0) if self._sums else torch.zeros(3)
        top1, top5, loss = (totals / max(self._images, 1)).tolist()
        hits, images = self._by_class.tolist() if isinstance(self._by_class, Tensor) else ([], [])
        return Accuracy(top1, top5, loss, self._images, tuple(hits), tuple(images))


class _PixelMeter:
    def __init__(self, num_classes: int, device: torch.device) -> None:
        try:
            from torchmetrics.classification import MulticlassConfusionMatrix
        except ImportError as error:
            raise RecipeError("mIoU needs torchmetrics; pip install 'prunecli[segmentation]'") from error
        self._confusion: Any = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED).to(device)
        self._losses: list[Tensor] = []
        self._images = 0

    def update(self, scores: Tensor, labels: Tensor) -> None:
        full = enlarged(scores, labels)
        self._confusion.update(full.argmax(dim=1), labels)
        self._losses.append(F.cross_entropy(full, labels, ignore_index=IGNORED, reduction="sum"))
        self._images += len(labels)

    def compute(self) -> SegmentationAccuracy:
        confusion = self._confusion.compute().cpu().double()  # rows: masks, columns: predictions
        pixels = confusion.sum()
        hits, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
        occurs = union > 0
        iou = 100 * hits / union.clamp(min=1)
        loss = torch.stack(self._losses).cpu().double().sum() if self._losses else torch.zeros(())
        return SegmentationAccuracy(
            miou=float(iou[occurs].mean()) if occurs.any() else 0.0,
            pixel_accuracy=float(100 * hits.sum() / pixels.clamp(min=1)),
            class_iou=tuple(float(value) if there else None for value, there in zip(iou, occurs, strict=True)),
            loss=float(loss / pixels.clamp(min=1)),
            images=self._images,
        )
