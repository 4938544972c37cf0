"""Which channels `prune sca` opens at a pruning, and how many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunecli.errors import MethodError
from prunecli.methods.sca_params import ScaParams


@dataclass(frozen=True)
class Prunings:
    """The prunings of a run.

    Attributes:
        params: Shares, and how often.
        epochs: Epochs of the run.
        total: Channels that take part.
        least: Channels that layers keep in any case.
    """

    params: ScaParams
    epochs: int
    total: int
    least: int

    @property
    def count(self) -> int:
        """How many there are."""
        return (self.params.prune_epochs or self.epochs) // self.params.prune_every

    @property
    def last(self) -> int:
        """The epoch after which what is open no longer changes."""
        return self.count * self.params.prune_every

    def due(self, epoch: int) -> bool:
        """Whether there is one at the end of this epoch."""
        return epoch <= self.last and epoch % self.params.prune_every == 0

    def counts(self, epoch: int) -> tuple[int, int]:
        """How many channels stay by activity, and how many come back, at the end of this epoch.

        Without a connectivity, a share `keep_share` stays and `regrow_share` of the others comes back. With one, all
        that are open lie on a straight line from that number at the first pruning to the connectivity at the last.
        """
        kept, regrown = self._share(self.params.keep_share), 0
        kept = max(kept, self.least)
        regrown = round(self.params.regrow_share * (self.total - kept))
        if self.params.connectivity is None:
            return kept, regrown
        first, number = kept + regrown, epoch // self.params.prune_every
        progress = (number - 1) / (self.count - 1) if self.count > 1 else 1.0
        opened = max(round(first + progress * (self._share(self.params.connectivity) - first)), self.least)
        share = self.params.regrow_share
        alone = (opened - share * self.total) / (1 - share) if share < 1 else 0.0
        kept = min(max(round(alone), self.least), opened)
        return kept, opened - kept

    def check(self) -> None:
        """Refuses what cannot be done.

        Raises:
            MethodError: A share is not one, there is no pruning in these epochs, or layers keep more than the
                connectivity allows.
        """
        for name in ("keep_share", "regrow_share", "connectivity"):
            share = getattr(self.params, name)
            if share is not None and not 0 <= share <= 1:
                raise MethodError(f"sca: {name} {share:g} is not a share; give a number from 0 to 1")
        if (self.params.prune_epochs or 0) > self.epochs:
            raise MethodError(
                f"sca: {self.params.prune_epochs} prune_epochs are more than the {self.epochs} epochs of the run; give "
                "fewer, or more --epochs"
            )
        if self.count == 0:
            epochs = self.params.prune_epochs or self.epochs
            raise MethodError(
                f"sca: with a pruning every {self.params.prune_every} epochs there is none in {epochs}; lower "
                "prune_every, or train longer"
            )
        connectivity = self.params.connectivity
        if connectivity is not None and self._share(connectivity) < self.least:
            raise MethodError(
                f"sca: a connectivity of {connectivity:g} leaves {self._share(connectivity)} of {self.total} channels, "
                f"but with min_width {self.params.min_width} layers keep {self.least}; lower min_width, or give at "
                f"least {math.ceil(1000 * self.least / self.total) / 1000:g}"
            )

    def _share(self, share: float) -> int:
        return round(share * self.total)


@dataclass(frozen=True)
class Choice:
    """What is open after a pruning.

    Attributes:
        opened: Booleans by group name, shape (units,).
        regrown: Those of them that are open because of their gradients.
    """

    opened: dict[str, Tensor]
    regrown: dict[str, Tensor]


def choose(
    scores: Mapping[str, Tensor], gradients: Mapping[str, Tensor], least: Mapping[str, int], kept: int, regrown: int
) -> Choice:
    """Opens the most active channels of all groups together, and of the others those with the largest gradients.

    Among equals the first one wins.

    Args:
        scores: Activity by group name, shape (units,).
        gradients: Size of the gates' gradients, in the same form.
        least: How many of each group stay by activity in any case.
        kept: How many stay by activity.
        regrown: How many of the others come back.
    """
    by_activity = torch.cat(list(scores.values()))
    starts, start = {}, 0
    for name, values in scores.items():
        starts[name], start = start, start + len(values)
    first = torch.cat([_largest(values, least[name]) + starts[name] for name, values in scores.items()])
    stays = torch.zeros(start, dtype=torch.bool)
    stays[first] = True
    rest = by_activity.masked_fill(stays, -math.inf)
    stays[_largest(rest, kept - len(first))] = True
    missed = torch.cat([gradients[name] for name in scores]).masked_fill(stays, -math.inf)
    back = torch.zeros(start, dtype=torch.bool)
    back[_largest(missed, regrown)] = True
    opened = stays | back
    parts = {name: slice(starts[name], starts[name] + len(values)) for name, values in scores.items()}
    return Choice(
        {name: opened[part] for name, part in parts.items()}, {name: back[part] for name, part in parts.items()}
    )


def _largest(values: Tensor, count: int) -> Tensor:
    return values.sort(descending=True, stable=True).indices[: max(count, 0)]
