"""Noticing a loss that explodes without ever being NaN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunecli import ranks
from prunecli.engine.hooks import Batch, Hook, State, Training

_RISE = 10.0
_LEAST = 1.0
"""A trained network starts near 0, where any loss is a large rise; so smaller first losses count as this."""


class ExplosionWatch(Hook):
    """Warns once if the mean task loss of an epoch is over ten times that of the first batch.

    The network is probably lost then, although its weights are finite. Penalties of other hooks, which may grow on
    purpose, do not count: this hook has to come first.

    Args:
        warn: Receives the warning.
    """

    name = "explosion-watch"
    works_sharded = True

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._first: float | None = None
        self._warned = False
        self._sum: Tensor | None = None
        self._count = 0
        self._rate = 0.0
        self._optimizer: torch.optim.Optimizer | None = None

    def begin(self, training: Training) -> None:
        """Remembers the optimizer, which knows the learning rate."""
        self._optimizer = training.optimizer

    def epoch_start(self, epoch: int, batch: int) -> None:
        """Starts a new mean; of an epoch resumed in the middle it is that of the rest."""
        self._sum, self._count, self._rate = None, 0, 0.0

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Adds up the loss, which is unchanged."""
        value = loss.detach().float()
        if self._first is None:
            self._first = float(ranks.averaged([value])[0])
        # Not `.item()`: on a GPU it would wait for every batch.
        self._sum = value if self._sum is None else self._sum + value
        self._count += 1
        assert self._optimizer is not None, "training has begun"
        self._rate = max(self._rate, *(float(group["lr"]) for group in self._optimizer.param_groups))
        return loss

    def epoch_end(self, epoch: int) -> None:
        """Compares the mean with the first batch."""
        if self._warned or self._sum is None or self._first is None:
            return
        mean = float(ranks.averaged([self._sum])[0]) / self._count
        if mean > _RISE * max(self._first, _LEAST):
            self._warned = True
            self._warn(
                f"warning: the loss rose from {self._first:.3g} to {mean:.3g} in epoch {epoch}, so the network has "
                f"probably learned nothing; lower the learning rate (--lr, {self._rate:g} now) and start again"
            )

    def state(self) -> State:
        """The first loss, and whether the warning is out."""
        return {"first": self._first, "warned": self._warned}

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        self._first, self._warned = state["first"], state["warned"]
