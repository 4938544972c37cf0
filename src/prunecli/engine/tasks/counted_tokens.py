"""Tasks in which few tokens count: their loss is added up over these, and a teacher is asked about no others."""

from __future__ import annotations

from torch import Tensor

from prunecli.engine.tasks.base import Task, softened_divergence
from prunecli.engine.tasks.token_scores import IGNORED, counted, counted_loss


class CountedTokens(Task):
    """Scores of shape (N, T, classes); labels of shape (N, T), in which -100 counts nowhere."""

    class_dimension = -1

    def loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Cross-entropy per token that counts; 0 for a batch in which none does."""
        return counted_loss(scores, labels, label_smoothing)

    def terms(self, scores: Tensor, labels: Tensor) -> int:
        """Tokens that count."""
        return int((labels != IGNORED).sum())

    def taught(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Those of tokens that count, shape (tokens, classes)."""
        return counted(scores, labels)

    def teacher_loss(self, scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
        """Averaged over tokens, shape (tokens, classes)."""
        return softened_divergence(scores, teacher_scores, temperature) / max(len(scores), 1)
