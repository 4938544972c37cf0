"""What pruning does to the score of a network's task."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunecli.report.numbers import interval
from prunecli.report.scores import score_named


@dataclass(frozen=True)
class ScoreChange:
    """The score of the network before and after, on the same samples.

    Attributes:
        score: Its name, as in `report.scores.SCORES`.
        split: Name of the samples' split.
        images: Samples that were read.
        of: Samples of the split.
        before: Of the network before.
        after: Of the smaller one.
        drop: How much worse that is.
        drop_interval: Its 95 % interval, paired over samples; None for scores that are no share of samples.
    """

    score: str
    split: str
    images: int
    of: int
    before: float
    after: float
    drop: float
    drop_interval: tuple[float, float] | None = None

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """Both scores, by name."""
        return {f"{self.score}_before": self.before, f"{self.score}_after": self.after}

    def row(self) -> tuple[str, str, str, str]:
        """Figure, before, after and the difference, in a table of pruning."""
        score = score_named(self.score)
        samples = self.split if self.images == self.of else f"{self.images} of {self.of} of {self.split}"
        change = self.after - self.before + 0.0
        text = f"{change:+.{score.digits}f}{' points' if score.unit else ''}"
        if self.drop_interval is not None:
            low, high = self.drop_interval
            text = f"{text} {interval(0.0 - high, 0.0 - low)}"
        return (f"{score.label} ({samples})", score.text(self.before), score.text(self.after), text)
