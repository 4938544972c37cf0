"""One class for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.utils.metrics import accuracy
from torch import Tensor

from prunecli.engine.tasks.base import Meter, Task, softened_divergence
from prunecli.measure.intervals import accuracy_interval, mean_recall_interval


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
        """Top-1 accuracy."""
        return self.top1

    @property
    def logged(self) -> dict[str, float]:
        """Top-1 accuracy and loss."""
        return {"top1": self.top1, "loss": self.loss}

    @property
    def mean_class_recall(self) -> float:
        """Mean over the classes that occur of the share of their images that was right, in percent."""
        shares = [hits / images for hits, images in zip(self.class_hits, self.class_images, strict=True) if images]
        return 100 * sum(shares) / max(len(shares), 1)


class Classification(Task):
    """Scores of shape (N, classes), labels of shape (N,) or, mixed, (N, classes)."""

    name = "classification"
    figures = Accuracy
    learns_from_parent = True
    temperature = 10.0

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy."""
        # Mixed labels are already smoothed by timm.
        smoothing = 0.0 if labels.is_floating_point() else label_smoothing
        return F.cross_entropy(scores, labels, label_smoothing=smoothing)

    def teacher_loss(self, scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
        """Averaged over images."""
        return softened_divergence(scores, teacher_scores, temperature) / len(scores)

    def meter(self, device: torch.device) -> AccuracyMeter:
        """Counts top-1 and top-5."""
        return AccuracyMeter()

    def named(self, figures: Accuracy) -> dict[str, Any]:
        """Accuracies with intervals."""
        return {
            "top1": figures.top1,
            "top5": figures.top5,
            "loss": figures.loss,
            "images": figures.images,
            "mean_class_recall": figures.mean_class_recall,
            "top1_interval": accuracy_interval(figures.top1, figures.images),
            "top5_interval": accuracy_interval(figures.top5, figures.images),
            "mean_class_recall_interval": mean_recall_interval(figures.class_hits, figures.class_images),
        }


class AccuracyMeter(Meter):
    """Adds up accuracies and the cross-entropy."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # added up on the CPU in float64, which not every accelerator has
        self._images = 0
        self._by_class: Tensor | int = 0

    def measure(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Takes scores (N, classes) and labels (N,)."""
        top1, top5 = accuracy(scores, labels, topk=(1, 5))
        right = scores.argmax(dim=1) == labels
        counts = [torch.bincount(chosen, minlength=scores.shape[1]) for chosen in (labels[right], labels)]
        loss = F.cross_entropy(scores, labels)
        sums = torch.stack([top1.to(loss), top5.to(loss), loss]) * len(labels)
        return torch.stack(counts).cpu(), sums, len(labels)

    def add(self, measured: tuple[Tensor, Tensor, int]) -> None:
        """Adds it up."""
        counts, sums, images = measured
        self._by_class = self._by_class + counts
        self._sums.append(sums)
        self._images += images

    def compute(self) -> Accuracy:
        """Returns the accuracy of everything so far."""
        totals = torch.stack(self._sums).cpu().double().sum(dim=0) if self._sums else torch.zeros(3)
        top1, top5, loss = (totals / max(self._images, 1)).tolist()
        hits, images = self._by_class.tolist() if isinstance(self._by_class, Tensor) else ([], [])
        return Accuracy(top1, top5, loss, self._images, tuple(hits), tuple(images))
