"""Hooks: everything that takes part in training without a loop of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunecli.engine.replicas import weighted
from prunecli.report.table import Table

State = dict[str, Any]
"""Plain data and tensors."""


@dataclass(frozen=True)
class Training:
    """The training run that a hook takes part in.

    Attributes:
        model: The network being trained, on `device`.
        optimizer: Its optimizer.
        device: Where it runs.
        epochs: Epochs of the whole run.
        steps: Optimizer steps in each epoch.
        num_classes: Number of classes; 0 where there are none.
        batches: Training batches, to tell whether they are `contiguous`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    epochs: int
    steps: int
    num_classes: int
    batches: Any = None


@dataclass(frozen=True)
class Batch:
    """One batch after the forward pass.

    Attributes:
        inputs: The network's inputs, on its device, after mixup.
        labels: Labels in the form the task expects.
        outputs: What the network computed, such as scores; losses by name, where a network has its own.
        counts: False where these samples stand in for this process's share of a batch, because it has none.
    """

    inputs: Any
    labels: Any
    outputs: Any
    counts: bool = True

    def weighted(self, mean: Tensor, terms: int) -> Tensor:
        """A term of the loss that is a mean over samples, as `Hook.loss` has to return it.

        Several processes share a batch and average their losses. So a mean has to weigh as much as there are terms in
        it, and then the average is the mean over all terms; alone, it stays as it is. Every process has to call this.

        Args:
            mean: Over samples, pixels or tokens of this process.
            terms: How many.
        """
        return weighted(mean, terms if self.counts else 0)


class Hook:
    """Takes part in training. Overriding any of the methods is optional.

    `fit` calls hooks in the order in which it receives them. Whatever a hook remembers between steps belongs in
    `state`, so that an interrupted run resumes bit by bit.

    Several processes that train together call each hook everywhere, and a hook must decide the same on each of them:
    from weights, or from sums over `prunecli.ranks`.

    Attributes:
        name: Key under which the state is saved; unique within a run.
        per_process: Whether its state is another one in each process, as sums over samples are.
        works_sharded: Whether it works where parameters are divided among processes (`prunecli.engine.sharding`):
            whatever it does with them has to be right for DTensors.
    """

    name: ClassVar[str] = "hook"
    per_process: ClassVar[bool] = False
    works_sharded: ClassVar[bool] = False

    def begin(self, training: Training) -> None:
        """Called once, before a saved state is restored and before the first step."""

    def epoch_start(self, epoch: int, batch: int) -> None:
        """Called with the network in training mode.

        Args:
            epoch: From 1.
            batch: Index of the first batch; greater than 0 when an epoch is resumed in the middle.
        """

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Returns the loss to minimise, for instance `loss` plus a penalty.

        Several processes average what they return. So a penalty on weights is added as it is, and a mean over samples
        as `batch.weighted` returns it.

        Args:
            loss: The loss so far: the task's, as changed by earlier hooks.
            batch: The batch, or this process's share of it.
        """
        return loss

    def before_step(self) -> None:
        """Called once the gradients are complete and clipped."""

    def after_step(self) -> None:
        """Called after the optimizer has updated the weights, before they are used or saved."""

    def epoch_end(self, epoch: int) -> None:
        """Called after the last step of an epoch, before validation."""

    def score(self, epoch: int, score: float) -> float | None:
        """Returns the score by which the best epoch is chosen, or None to rule this epoch out.

        If every epoch is ruled out, the weights of the last one are kept.

        Args:
            epoch: From 1.
            score: The validation score so far: the task's, as changed by earlier hooks.
        """
        return score

    def tables(self) -> Sequence[Table]:
        """Returns tables to show after an epoch, for instance with a row per layer."""
        return ()

    def end(self) -> None:
        """Called once after the last epoch, with the weights of the chosen epoch loaded."""

    def state(self) -> State:
        """Returns everything that determines how the hook continues, as plain data and tensors."""
        return {}

    def restore(self, state: State) -> None:
        """Restores `state()`."""

    def merged(self, states: Sequence[State]) -> State:
        """The state to restore on another number of processes, where it differs from process to process.

        Args:
            states: That of each process, by rank.
        """
        return states[0]
