"""One class for every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunecli.engine.tasks.base import Described, Meter, Task, softened_divergence
from prunecli.errors import RecipeError

_IGNORED = 255
"""Class index of pixels that count nowhere."""


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
        """mIoU."""
        return self.miou

    @property
    def logged(self) -> dict[str, float]:
        """mIoU, loss and pixel accuracy."""
        return {"miou": self.miou, "loss": self.loss, "pixel_accuracy": self.pixel_accuracy}


class Segmentation(Task):
    """Scores of shape (N, classes, h, w), enlarged to labels of shape (N, H, W) in which 255 is void."""

    name = "segmentation"
    figures = SegmentationAccuracy
    per_pixel = True
    refused_settings = ("mixup", "cutmix", "auto_augment", "random_erasing")
    own_augmentation = "masks: leave it out (they are scaled, cropped and mirrored; --color-jitter works)"

    def __init__(self, data: Described) -> None:
        super().__init__(data)
        self._num_classes = len(self.class_names)

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy per pixel that is not void; 0 for a batch of nothing but void."""
        total = F.cross_entropy(
            _enlarged(scores, labels), labels, ignore_index=_IGNORED, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (labels != _IGNORED).sum().clamp(min=1)

    def teacher_loss(self, scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
        """Averaged over scores, at the resolution the network gives them."""
        resized = _enlarged(teacher_scores, scores[:, 0])
        return softened_divergence(scores, resized, temperature) / scores[:, 0].numel()

    def terms(self, scores: Tensor, labels: Tensor) -> int:
        """Pixels that are not void."""
        return int((labels != _IGNORED).sum())

    def teacher_terms(self, scores: Tensor) -> int:
        """Scores."""
        return scores[:, 0].numel()

    def meter(self, device: torch.device) -> _PixelMeter:
        """Counts a confusion matrix.

        Raises:
            RecipeError: torchmetrics is not installed.
        """
        return _PixelMeter(self._num_classes)

    def named(self, figures: SegmentationAccuracy) -> dict[str, Any]:
        """mIoU, pixel accuracy, and the IoU of each class by name."""
        by_name = zip(self.class_names, figures.class_iou, strict=True)
        return {
            "miou": figures.miou,
            "pixel_accuracy": figures.pixel_accuracy,
            "class_iou": {name: iou for name, iou in by_name if iou is not None},
            "loss": figures.loss,
            "images": figures.images,
        }


def _enlarged(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores (N, classes, h, w) interpolated to the height and width of `labels`, shape (N, H, W)."""
    if scores.shape[-2:] == labels.shape[-2:]:
        return scores
    return F.interpolate(scores, size=labels.shape[-2:], mode="bilinear", align_corners=False)


class _PixelMeter(Meter):
    def __init__(self, num_classes: int) -> None:
        try:
            from torchmetrics.functional.classification import multiclass_confusion_matrix
        except ImportError as error:
            raise RecipeError("mIoU needs torchmetrics; pip install 'prunecli[segmentation]'") from error
        self._compare: Callable[..., Tensor] = partial(
            multiclass_confusion_matrix, num_classes=num_classes, ignore_index=_IGNORED
        )
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)  # rows: masks, columns: predictions
        self._losses: list[Tensor] = []
        self._images = 0

    def measure(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        full = _enlarged(scores, labels)
        loss = F.cross_entropy(full, labels, ignore_index=_IGNORED, reduction="sum")
        return self._compare(full.argmax(dim=1), labels), loss, len(labels)

    def add(self, measured: tuple[Tensor, Tensor, int]) -> None:
        confusion, loss, images = measured
        self._confusion = self._confusion.to(confusion) + confusion
        self._losses.append(loss)
        self._images += images

    def compute(self) -> SegmentationAccuracy:
        confusion = self._confusion.cpu().double()
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
