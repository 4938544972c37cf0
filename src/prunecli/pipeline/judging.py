"""What the test images are judged by, and the figures by their names in a report, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunecli.criteria.base import Loss, default_loss
from prunecli.engine.retrieval import RANKS, Recalls, Retrieval
from prunecli.engine.tasks import Accuracy, Figures, Judge
from prunecli.inputs import logits
from prunecli.measure.intervals import accuracy_interval, mean_recall_interval
from prunecli.models.prompt_classifier import PromptClassifier
from prunecli.pipeline.workspace import Workspace


def judge_of(space: Workspace) -> Judge[Figures | Recalls]:
    """What scores of the data set's images are judged by.

    Raises:
        DataError: They have neither classes nor captions.
    """
    data = space.data()
    return Retrieval(data.described) if data.task == "retrieval" else space.task()


def loss_of(space: Workspace) -> Loss:
    """What criteria take gradients of: for a network with a text tower that of its prompts, not of its features."""
    classifier = space.classifier(remember=True)
    if not isinstance(classifier, PromptClassifier):
        return default_loss
    classifier.eval()

    def loss(output: Any, labels: Tensor | None) -> Tensor:
        return default_loss(classifier.scores(logits(output)), labels)

    return loss


def named_figures(figures: Figures | Recalls, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """What `report.schema.Metrics` calls them.

    Args:
        figures: Of one network.
        class_names: Of a segmentation's classes.
    """
    if isinstance(figures, Accuracy):
        return _of_accuracy(figures)
    if isinstance(figures, Recalls):
        return _of_recalls(figures)
    named = dataclasses.asdict(figures)
    found = zip(class_names, figures.class_iou, strict=True)
    named["class_iou"] = {name: value for name, value in found if value is not None}
    return named


def _of_accuracy(figures: Accuracy) -> dict[str, Any]:
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


def _of_recalls(figures: Recalls) -> dict[str, Any]:
    """Intervals are of so many images: captions of one image are not independent of each other."""
    named: dict[str, Any] = {"images": figures.images, "captions": figures.captions}
    for sought, recalls in (("image", figures.image), ("text", figures.text)):
        for rank, recall in zip(RANKS, recalls, strict=True):
            named[f"{sought}_recall_{rank}"] = recall
            named[f"{sought}_recall_{rank}_interval"] = accuracy_interval(recall, figures.images)
    return named
