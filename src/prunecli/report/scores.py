"""Figures that networks are judged by: what reports and tables call them. A new one is a line here."""

from __future__ import annotations

from dataclasses import dataclass

from prunecli.report.numbers import fixed


@dataclass(frozen=True)
class Score:
    """One figure.

    Attributes:
        name: In reports and conditions.
        label: In tables.
        task: What it belongs to.
        has_interval: Whether a 95 % interval comes with it, as NAME_interval.
        unit: Behind the number in tables.
        less_is_better: Whether a network is the better the lower it is.
        of_text: Whether it is about a text, however that is divided into tokens.
    """

    name: str
    label: str
    task: str
    has_interval: bool = True
    unit: str = " %"
    less_is_better: bool = False
    of_text: bool = False

    @property
    def loss_name(self) -> str:
        """What a comparison calls how much worse than the baseline it is: NAME_drop, or NAME_rise."""
        return f"{self.name}_{'rise' if self.less_is_better else 'drop'}"

    @property
    def lost_unit(self) -> str:
        """What follows a number that says how much worse a network is."""
        return "points lost" if self.unit else "more" if self.less_is_better else "less"

    def lost(self, baseline: float, other: float) -> float:
        """How much worse than the baseline another network is."""
        return other - baseline if self.less_is_better else baseline - other

    def merit(self, value: float) -> float:
        """The value, or its negative where less is better; of a merit, the value again."""
        return -value if self.less_is_better else value

    def text(self, value: float | None) -> str:
        """Its value in tables."""
        return fixed(value, self.digits, self.unit)

    @property
    def digits(self) -> int:
        """Decimals in tables: percentages have two."""
        return 2 if self.unit else 3


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
    Score("map50_95", "mAP@50:95", "detection", has_interval=False),
    Score("map50", "mAP@50", "detection", has_interval=False),
    Score("token_accuracy", "token accuracy", "token-classification", has_interval=False),
    Score("macro_f1", "macro F1", "token-classification", has_interval=False),
    Score("perplexity", "perplexity", "language", has_interval=False, unit="", less_is_better=True),
    Score("bits_per_character", "bits per character", "language", False, "", less_is_better=True, of_text=True),
    Score("bits_per_byte", "bits per byte", "language", False, "", less_is_better=True, of_text=True),
    Score("bits_per_token", "bits per token", "language", has_interval=False, unit="", less_is_better=True),
    Score("pseudo_perplexity", "pseudo-perplexity", "masked-language", False, "", less_is_better=True),
    Score("masked_accuracy", "accuracy of masked tokens", "masked-language", has_interval=False),
)


def score_named(name: str) -> Score:
    """One of `SCORES`."""
    return next(score for score in SCORES if score.name == name)
