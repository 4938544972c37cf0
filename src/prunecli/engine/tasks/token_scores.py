"""Scores of tokens, some of which count nowhere."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Label of tokens that count nowhere; the default of torch's cross-entropy."""
DIMENSIONS = 3
"""Of scores: samples, tokens and classes."""


def counted(scores: Tensor, labels: Tensor) -> Tensor:
    """The scores of tokens that count, shape (tokens, classes).

    Args:
        scores: Shape (N, T, classes).
        labels: Shape (N, T).
    """
    return scores[labels != IGNORED]


def counted_loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of the tokens that count, a scalar; 0 where none does.

    Args:
        scores: Shape (N, T, classes).
        labels: Shape (N, T).
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
    """
    total = F.cross_entropy(
        scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (labels != IGNORED).sum().clamp(min=1)


LossTerms: TypeAlias = tuple[Tensor, int]
"""The sum of the losses of tokens, and how many tokens they are."""


def loss_terms(scores: Tensor, labels: Tensor) -> LossTerms:
    """The cross-entropy of the tokens that count.

    Args:
        scores: Shape (tokens, classes).
        labels: Shape (tokens,).
    """
    total = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")
    return total, int((labels != IGNORED).sum())


class LossSum:
    """Adds up the cross-entropy of tokens that count.

    Attributes:
        tokens: How many did.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []  # added up on the CPU in float64, which not every accelerator has
        self.tokens = 0

    def add(self, terms: LossTerms) -> None:
        """Takes what `loss_terms` returned."""
        loss, tokens = terms
        self._losses.append(loss)
        self.tokens += tokens

    def mean(self) -> float:
        """In nats; NaN where no token counted."""
        return float(torch.stack(self._losses).cpu().double().sum() / self.tokens) if self.tokens else math.nan
