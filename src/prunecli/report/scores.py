"""Percentages that networks are judged by: what reports and tables call them. A new one is a line here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One percentage, of which more is better.

    Attributes:
        name: In reports and conditions; its loss against a baseline is called NAME_drop.
        label: In tables.
        task: What it belongs to.
        has_interval: Whether a 95 % interval comes with it, as NAME_interval.
    """

    name: str
    label: str
    task: str
    has_interval: bool = True


SCORES = (
    Score("top1", "top-1", "classification"),
    Score("top5", "top-5", "classification"),
    Score("mean_class_recall", "mean class recall", "classification"),
    Score("image_recall_1", "image R@1", "retrieval"),
    Score("image_recall_5", "image R@5", "retrieval"),
    Score("image_recall_10", "image R@10", "retrieval"),
    Score("text_recall_1", "text R@1", "retrieval"),
    Score("text_recall_5", "text R@5", "retrieval"),
    Score("text_recall_10", "text R@10", "retrieval"),
    Score("miou", "mIoU", "segmentation", has_interval=False),
    Score("pixel_accuracy", "pixel accuracy", "segmentation", has_interval=False),
)
