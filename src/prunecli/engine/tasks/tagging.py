"""One class for every word of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunecli.engine.tasks.base import Described, Meter
from prunecli.engine.tasks.counted_tokens import CountedTokens
from prunecli.engine.tasks.token_scores import DIMENSIONS, IGNORED, LossSum, LossTerms, loss_terms
from prunecli.errors import DataError, RecipeError


@dataclass(frozen=True)
class TaggingAccuracy:
    """Percentages over `tokens` tokens that have a class; `loss` is the mean cross-entropy in nats.

    Attributes:
        token_accuracy: Share of the tokens with the right class.
        macro_f1: F1 score, averaged over the classes that occur in labels or predictions.
        loss: Per token.
        tokens: How many.
    """

    token_accuracy: float
    macro_f1: float
    loss: float
    tokens: int
    score_name: ClassVar[str] = "token_accuracy"
    score_label: ClassVar[str] = "token accuracy"

    @property
    def images(self) -> int:
        """The tokens."""
        return self.tokens

    @property
    def score(self) -> float:
        """Token accuracy."""
        return self.token_accuracy

    @property
    def logged(self) -> dict[str, float]:
        """Token accuracy, macro F1 and loss."""
        return {"token_accuracy": self.token_accuracy, "macro_f1": self.macro_f1, "loss": self.loss}


class Tagging(CountedTokens):
    """Scores of shape (N, T, classes); labels of shape (N, T), in which -100 is no class."""

    name = "token-classification"
    figures = TaggingAccuracy
    refused_evaluations: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, data: Described) -> None:
        super().__init__(data)
        self._num_classes = len(self.class_names)

    def meter(self, device: torch.device) -> _TagMeter:
        """Counts hits of every class.

        Raises:
            RecipeError: torchmetrics is not installed.
        """
        return _TagMeter(self._num_classes, device)

    def named(self, figures: TaggingAccuracy) -> dict[str, Any]:
        """Accuracy, F1 and loss."""
        return {**figures.logged, "tokens": figures.tokens}

    def check_scores(self, scores: Tensor, network: str) -> None:
        """Compares the shape of a network's scores with what words need.

        Raises:
            DataError: There is no score for every token.
        """
        if scores.dim() != DIMENSIONS:
            raise DataError(f"{network} finds no class for every token, and {self.data_name} has tags; see --data")


class _TagMeter(Meter):
    def __init__(self, num_classes: int, device: torch.device) -> None:
        try:
            from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
        except ImportError as error:
            raise RecipeError("accuracy of tokens needs torchmetrics; pip install 'prunecli[transformers]'") from error
        options: dict[str, Any] = {"ignore_index": IGNORED, "validate_args": False}
        self._accuracy: Any = MulticlassAccuracy(num_classes, average="micro", **options).to(device)
        self._f1: Any = MulticlassF1Score(num_classes, average="macro", **options).to(device)
        self._loss, self._device = LossSum(), device

    def measure(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, LossTerms]:
        own, flat = scores.flatten(0, 1), labels.flatten()
        return own.argmax(dim=1), flat, loss_terms(own, flat)

    def add(self, measured: tuple[Tensor, Tensor, LossTerms]) -> None:
        predicted, labels, terms = measured
        predicted, labels = predicted.to(self._device), labels.to(self._device)
        self._accuracy.update(predicted, labels)
        self._f1.update(predicted, labels)
        self._loss.add(terms)

    def compute(self) -> TaggingAccuracy:
        tokens = self._loss.tokens
        return TaggingAccuracy(
            100 * float(self._accuracy.compute()) if tokens else 0.0,
            100 * float(self._f1.compute()) if tokens else 0.0,
            self._loss.mean(),
            tokens,
        )
