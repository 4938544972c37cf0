"""What takes part in training without a loop of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunecli.report.table import Table

State = dict[str, Any]
"""Plain data and tensors."""


@dataclass(frozen=True)
class Training:
    """What a hook may need to know about the run it takes part in.

    Attributes:
        model: The network that is trained, on `device`.
        optimizer: Its optimizer.
        device: Where it runs.
        epochs: Epochs of the whole run.
        steps: Optimizer steps in each epoch.
        num_classes: Number of classes; 0 where there are none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    epochs: int
    steps: int
    num_classes: int


@dataclass(frozen=True)
class Batch:
    """One batch after the forward pass.

    Attributes:
        inputs: What the network was given, on its device, mixed if mixup is on.
        labels: Labels as the task wants them.
        scores: What the network made of them.
    """

    inputs: Any
    labels: Any
    scores: Tensor


class Hook:
    """Takes part in training. Every method may be left out.

    Hooks are called in the order in which `fit` was given them. What a hook remembers between two steps goes into
    `state`; then a run that was interrupted continues bit by bit.

    Attributes:
        name: Under which its state is saved; different for all hooks of a run.
    """

    name: ClassVar[str] = "hook"

    def begin(self, training: Training) -> None:
        """Called once, before a saved state is restored and before the first step."""

    def epoch_start(self, epoch: int, batch: int) -> None:
        """Called with the network in training mode.

        Args:
            epoch: From 1.
            batch: The batch that comes first; more than 0 where an epoch is resumed.
        """

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Returns the loss to minimise, for instance `loss` plus a penalty.

        Args:
            loss: What the task and the hooks before this one make of the batch.
            batch: The batch.
        """
        return loss

    def before_step(self) -> None:
        """Called when the gradients are complete and clipped."""

    def after_step(self) -> None:
        """Called after the optimizer has changed the weights and before they are used or saved."""

    def epoch_end(self, epoch: int) -> None:
        """Called after the last step of an epoch, before validation."""

    def score(self, epoch: int, score: float) -> float | None:
        """Returns the validation score that epochs are chosen by; None if this epoch may not be chosen.

        Args:
            epoch: From 1.
            score: The task's score, as the hooks before this one see it.
        """
        return score

    def tables(self) -> Sequence[Table]:
        """Returns what a person may want to see after an epoch, for instance a row for each layer."""
        return ()

    def end(self) -> None:
        """Called once after the last epoch, when the model has the weights of the chosen epoch."""

    def state(self) -> State:
        """Returns all that decides how the hook continues: plain data and tensors."""
        return {}

    def restore(self, state: State) -> None:
        """Puts `state()` back."""
