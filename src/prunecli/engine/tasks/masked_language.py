"""The masked tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunecli.engine.tasks.base import Meter
from prunecli.engine.tasks.counted_tokens import CountedTokens
from prunecli.engine.tasks.language import TokenLanguage, WordFigures
from prunecli.engine.tasks.token_scores import IGNORED, LossSum, LossTerms, counted, loss_terms
from prunecli.errors import DataError


@dataclass(frozen=True)
class MaskedFigures(WordFigures):
    """How well masked tokens are found; `tokens` are the masked ones, and so `perplexity` is a pseudo-perplexity.

    Attributes:
        masked_accuracy: Share of them that was found, in percent.
    """

    masked_accuracy: float = 0.0
    score_name: ClassVar[str] = "pseudo_perplexity"
    score_label: ClassVar[str] = "pseudo-perplexity"

    @property
    def logged(self) -> dict[str, float]:
        """Pseudo-perplexity, accuracy and loss."""
        return {
            "pseudo_perplexity": self.perplexity,
            "masked_accuracy": self.masked_accuracy,
            "loss": self.loss,
        }


class MaskedLanguage(CountedTokens, TokenLanguage):
    """Scores of shape (N, T, vocabulary); labels of shape (N, T): masked tokens, and -100, which counts nowhere."""

    name = "masked-language"
    figures = MaskedFigures

    def meter(self, device: torch.device) -> Meter:
        """Adds up losses and hits."""
        return _MaskMeter()

    def named(self, figures: Any) -> dict[str, Any]:
        """Pseudo-perplexity, accuracy and loss."""
        return {**figures.logged, "tokens": figures.tokens}

    def named_of(self, figures: WordFigures, split: Any) -> dict[str, float]:
        """Nothing: most of the text is never scored."""
        return {}


class _MaskMeter(Meter):
    def __init__(self) -> None:
        self._loss, self._found = LossSum(), 0

    def measure(self, scores: Tensor, labels: Tensor) -> tuple[LossTerms, int]:
        own, tokens = counted(scores, labels), labels[labels != IGNORED]
        return loss_terms(own, tokens), int((own.argmax(dim=1) == tokens).sum())

    def add(self, measured: tuple[LossTerms, int]) -> None:
        terms, found = measured
        self._loss.add(terms)
        self._found += found

    def compute(self) -> MaskedFigures:
        tokens = self._loss.tokens
        if not tokens:
            raise DataError("no token is masked in what was evaluated, so there is none to find: give a longer text")
        return MaskedFigures(self._loss.mean(), tokens, 100 * self._found / tokens)
