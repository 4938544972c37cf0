"""What a network says about samples, to be compared with what another one says about the same."""

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
from prunecli.report.scores import score_named


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


def drop_interval(dense: Answers, pruned: Answers) -> tuple[float, float] | None:
    """The 95 % interval of how much worse a network is on the samples that both were asked about.

    It is in percentage points; None for scores that are no share of samples.
    """
    if dense.right is None or pruned.right is None or len(dense.right) != len(pruned.right):
        return None
    lost, gained = dense.right & ~pruned.right, pruned.right & ~dense.right
    return paired_drop_interval(int(lost.sum()), int(gained.sum()), len(dense.right))


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
        return _WatchingMeter(meter, self.right) if share_of_samples else meter


class _WatchingMeter(Meter):
    def __init__(self, meter: Meter, right: list[Tensor]) -> None:
        self._meter, self._right = meter, right

    def measure(self, predictions: Any, labels: Any) -> Any:
        return self._meter.measure(predictions, labels), (predictions.argmax(dim=1) == labels).cpu()

    def add(self, measured: Any) -> None:
        figures, right = measured
        self._meter.add(figures)
        self._right.append(right)

    def compute(self) -> Any:
        return self._meter.compute()
