"""How a smaller network does beside the dense one, on the same samples."""

from __future__ import annotations

from prunecli.pipeline.answers import Answers, drop_interval
from prunecli.report.auto import Claim
from prunecli.report.scores import Score


def claim(split: str, score: Score, dense: Answers, pruned: Answers, *, decided: bool) -> Claim:
    """What is said of a smaller network.

    Args:
        split: Name of the samples' split.
        score: What is measured.
        dense: What the dense network said.
        pruned: What the smaller one said, of the same samples.
        decided: Whether the network was chosen on them.
    """
    return Claim(
        split=split,
        decided=decided,
        images=pruned.images,
        dense=dense.score,
        pruned=pruned.score,
        drop=score.lost(dense.score, pruned.score),
        interval=drop_interval(dense, pruned),
    )
