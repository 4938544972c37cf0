"""Learning from another network in addition to the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.engine.carrying import Carrier
from prunecli.engine.hooks import Batch, Hook, State, Training
from prunecli.engine.tasks.base import Task


class Distillation(Hook):
    """Turns the loss into (1 - w) CE + w T^2 KL(teacher || student) at temperature T (Hinton et al., 2015).

    Args:
        teacher: The network to learn from; not changed.
        task: What scores are for.
        weight: w.
        temperature: T; default: the task's.
    """

    name = "distillation"
    works_sharded = True
    per_process = True  # each has its own part of a text

    def __init__(self, teacher: nn.Module, task: Task, weight: float = 0.5, temperature: float | None = None) -> None:
        self._teacher, self._task, self._weight = teacher, task, weight
        self._temperature = temperature or task.temperature
        self._carrier = Carrier(None)

    def begin(self, training: Training) -> None:
        """Moves the teacher to the training device."""
        self._teacher.to(training.device).eval()
        self._carrier = Carrier(training.batches)

    def epoch_start(self, epoch: int, batch: int) -> None:
        """Lets the teacher forget the epoch before."""
        if batch == 0:
            self._carrier.forget()

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Blends in the teacher's term."""
        if self._weight == 0:
            return loss
        with torch.no_grad():
            teacher_scores = self._carrier.scores(self._teacher, batch.inputs)
        student, teacher = (self._task.taught(scores, batch.labels) for scores in (batch.outputs, teacher_scores))
        divergence = self._task.teacher_loss(student, teacher, self._temperature)
        divergence = batch.weighted(divergence, self._task.teacher_terms(student))
        return (1 - self._weight) * loss + self._weight * self._temperature**2 * divergence

    def state(self) -> State:
        """What the teacher remembers of the text so far."""
        return {"memory": self._carrier.state()}

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        self._carrier.restore(state["memory"])

    def merged(self, states: Sequence[State]) -> State:
        """Nothing is remembered: texts are cut up differently now."""
        return {"memory": None}
