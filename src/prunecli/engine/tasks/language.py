"""The next token of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunecli.engine.tasks.base import Meter, Task, softened_divergence
from prunecli.engine.tasks.token_scores import DIMENSIONS, IGNORED, LossSum, LossTerms, counted_loss, loss_terms
from prunecli.errors import DataError


@dataclass(frozen=True)
class WordFigures:
    """How well the words of a text are predicted.

    Attributes:
        loss: Mean cross-entropy in nats.
        tokens: Number of words, ends of lines included.
    """

    loss: float
    tokens: int
    score_name: ClassVar[str] = "perplexity"
    score_label: ClassVar[str] = "perplexity"

    @property
    def images(self) -> int:
        """The tokens."""
        return self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): as uncertain as a choice among so many tokens; infinite where that is too large for a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits(self) -> float:
        """loss / ln 2: bits per token."""
        return self.loss / math.log(2)

    @property
    def score(self) -> float:
        """Perplexity."""
        return self.perplexity

    @property
    def logged(self) -> dict[str, float]:
        """Perplexity and loss."""
        return {"perplexity": self.perplexity, "loss": self.loss}


@dataclass(frozen=True)
class CharacterFigures(WordFigures):
    """How well the characters of a text are predicted; `tokens` are characters."""

    score_name: ClassVar[str] = "bits_per_character"
    score_label: ClassVar[str] = "bits per character"

    @property
    def score(self) -> float:
        """Bits per character."""
        return self.bits

    @property
    def logged(self) -> dict[str, float]:
        """Bits per character, perplexity and loss."""
        return {"bits_per_character": self.bits, "perplexity": self.perplexity, "loss": self.loss}


class WordLanguage(Task):
    """Scores of shape (N, T, vocabulary); labels of shape (N, T), in which -100 counts nowhere."""

    name = "word-language"
    figures: ClassVar[type[WordFigures]] = WordFigures
    class_dimension = -1
    bits_name: ClassVar[str] = "bits_per_token"

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy per token; 0 for a batch in which none counts."""
        return counted_loss(scores, labels, label_smoothing)

    def teacher_loss(self, scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
        """Averaged over tokens."""
        divergence = softened_divergence(scores.flatten(0, 1), teacher_scores.flatten(0, 1), temperature)
        return divergence / scores[..., 0].numel()

    def terms(self, scores: Tensor, labels: Tensor) -> int:
        """Tokens that count."""
        return int((labels != IGNORED).sum())

    def teacher_terms(self, scores: Tensor) -> int:
        """All tokens."""
        return scores[..., 0].numel()

    def meter(self, device: torch.device) -> Meter:
        """Adds up the loss."""
        return _TokenMeter(self.figures)

    def named(self, figures: WordFigures) -> dict[str, Any]:
        """Perplexity, bits and loss."""
        return {
            "perplexity": figures.perplexity,
            self.bits_name: figures.bits,
            "loss": figures.loss,
            "tokens": figures.tokens,
        }

    def merit(self, score: float) -> float:
        """Less is better."""
        return -score

    def check_scores(self, scores: Tensor, network: str) -> None:
        """Compares the shape of a network's scores with what a text needs.

        Raises:
            DataError: There is no score for every token.
        """
        if scores.dim() != DIMENSIONS:
            raise DataError(f"{network} gives no scores for every token, and {self.data_name} is a text; see --data")

    def check_outputs(self, outputs: int, network: str) -> None:
        """Compares the number of a network's outputs with the vocabulary.

        Raises:
            DataError: They differ.
        """
        if outputs != len(self.class_names):
            raise DataError(
                f"{network} has scores for {outputs:,} tokens and the vocabulary of {self.data_name} has "
                f"{len(self.class_names):,}: give the text it was trained on with --data, or another --level"
            )


class CharacterLanguage(WordLanguage):
    """Tokens are characters."""

    name = "character-language"
    figures = CharacterFigures
    bits_name = "bits_per_character"


class TokenLanguage(WordLanguage):
    """Tokens are those of a tokenizer.

    There may be scores for more, because tables of scores are often rounded up, or for fewer, where a tokenizer has
    tokens that no text has. Whoever makes batches checks that the network knows the tokens in them.
    """

    name = "token-language"
    rounded_up = True

    def check_outputs(self, outputs: int, network: str) -> None:
        """Any number will do."""

    def named_of(self, figures: WordFigures, split: Any) -> dict[str, float]:
        """Bits for each character and byte of a text that was read from end to end: they compare tokenizers."""
        bits = figures.bits * figures.tokens
        amounts = {"bits_per_character": split.characters, "bits_per_byte": split.bytes}
        read = split.chosen is None and figures.tokens == len(split.tokens) - 1
        return {name: bits / amount for name, amount in amounts.items() if read and amount}


class _TokenMeter(Meter):
    def __init__(self, figures: type[WordFigures]) -> None:
        self._figures = figures
        self._loss = LossSum()

    def measure(self, scores: Tensor, labels: Tensor) -> LossTerms:
        return loss_terms(scores.flatten(0, 1), labels.flatten())

    def add(self, measured: LossTerms) -> None:
        self._loss.add(measured)

    def compute(self) -> WordFigures:
        return self._figures(self._loss.mean(), self._loss.tokens)
