"""The masked tokens of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prunecli.engine.tasks.base import Meter, softened_divergence
from prunecli.engine.tasks.language import TokenLanguage, WordFigures
from prunecli.engine.tasks.token_scores import IGNORED, counted
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


class MaskedLanguage(TokenLanguage):
    """Scores of shape (N, T, vocabulary); labels of shape (N, T): masked tokens, and -100, which counts nowhere."""

    name = "masked-language"
    figures = MaskedFigures

    def taught(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Those of masked tokens, shape (tokens, vocabulary)."""
        return counted(scores, labels)

    def teacher_loss(self, scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
        """Averaged over tokens, shape (tokens, vocabulary)."""
        return softened_divergence(scores, teacher_scores, temperature) / max(len(scores), 1)

    def meter(self, device: torch.device) -> Meter:
        """Adds up losses and hits."""
        return _MaskMeter()

    def named(self, figures: Any) -> dict[str, Any]:
        """Pseudo-perplexity, accuracy and loss."""
        return {**figures.logged, "tokens": figures.tokens}

    def named_of(self, figures: WordFigures, split: Any) -> dict[str, float]:
        """Nothing: most of the text is never scored."""
        return {}


class _MaskMeter:
    def __init__(self) -> None:
        self._losses: list[Tensor] = []  # added up on the CPU in float64, which not every accelerator has
        self._tokens = self._found = 0

    def update(self, scores: Tensor, labels: Tensor) -> None:
        own, tokens = counted(scores, labels), labels[labels != IGNORED]
        self._losses.append(F.cross_entropy(own, tokens, reduction="sum"))
        self._found += int((own.argmax(dim=1) == tokens).sum())
        self._tokens += len(tokens)

    def compute(self) -> MaskedFigures:
        if not self._tokens:
            raise DataError("no token is masked in what was evaluated, so there is none to find: give a longer text")
        total = torch.stack(self._losses).cpu().double().sum()
        return MaskedFigures(float(total / self._tokens), self._tokens, 100 * self._found / self._tokens)
