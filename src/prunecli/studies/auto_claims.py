"""How a smaller network does beside the dense one, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunecli.engine.evaluate import evaluate
from prunecli.engine.tasks.base import Meter, Task
from prunecli.measure.intervals import paired_drop_interval
from prunecli.pipeline.workspace import Workspace
from prunecli.report.auto import Claim
from prunecli.report.scores import Score, score_named


@dataclass(frozen=True)
class Answers:
    """What a network said about samples.

    Attributes:
        score: Its score.
        images: How many samples there were.
        right: Of a classifier, which of them it had right, shape (images,).
    """

    score: float
    images: int
    right: Tensor | None

    @property
    def finite(self) -> bool:
        """Whether it has a score at all."""
        return math.isfinite(self.score)


def answers(
    space: Workspace, network: nn.Module, batches: Iterable[Any], on_step: Callable[[int], None] | None = None
) -> Answers:
    """Evaluates a network of a run on its task.

    Args:
        space: The run.
        network: The network.
        batches: Samples and labels.
        on_step: Called after each batch with the number of samples so far.
    """
    watching = _Watching(space.judging.labelled_task())
    judged = space.judging.classifier(network, remember=True)
    figures = evaluate(judged, batches, space.device, on_step, task=cast(Task, watching))
    return Answers(float(figures.score), int(figures.images), torch.cat(watching.right) if watching.right else None)


def claim(split: str, score: Score, dense: Answers, pruned: Answers, *, decided: bool) -> Claim:
    """What is said of a smaller network.

    Args:
        split: Name of the samples' split.
        score: What is measured.
        dense: What the dense network said.
        pruned: What the smaller one said, of the same samples.
        decided: Whether the network was chosen on them.
    """
    interval = None
    if dense.right is not None and pruned.right is not None and len(dense.right) == len(pruned.right):
        lost, gained = dense.right & ~pruned.right, pruned.right & ~dense.right
        interval = paired_drop_interval(int(lost.sum()), int(gained.sum()), len(dense.right))
    return Claim(
        split=split,
        decided=decided,
        images=pruned.images,
        dense=dense.score,
        pruned=pruned.score,
        drop=score.lost(dense.score, pruned.score),
        interval=interval,
    )


@dataclass
class _Watching:
    """A task whose meters note which samples a classifier has right; everything else is the task's."""

    task: Task
    right: list[Tensor] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def meter(self, device: torch.device) -> Meter:
        """A meter of the task."""
        meter = self.task.meter(device)
        share_of_samples = score_named(self.task.figures.score_name).name == "top1"
        return cast(Meter, _WatchingMeter(meter, self.right)) if share_of_samples else meter


@dataclass
class _WatchingMeter:
    meter: Meter
    right: list[Tensor]

    def update(self, predictions: Any, labels: Any) -> None:
        self.meter.update(predictions, labels)
        self.right.append((predictions.argmax(dim=1) == labels).cpu())

    def compute(self) -> Any:
        return self.meter.compute()
