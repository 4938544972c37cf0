"""Reaching a share of connections or of synaptic operations with learned masks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunecli.errors import MethodError
from prunecli.inputs import Inputs
from prunecli.sparsity.connections import Wiring, count_connections
from prunecli.sparsity.soft_masks import SoftMask

_SETTLED = 0.5
"""Part of the run after which the target is reached, so that the network is trained with it."""


class Budget:
    """Counts what hard masks would leave, and moves their threshold.

    Args:
        model: The network with its soft masks.
        example: Inputs that it accepts.
        wiring: Its wiring.
        weights: Masks of weights by layer.
        neurons: Masks of neurons by layer of neurons.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Inputs,
        wiring: Wiring,
        weights: Mapping[str, SoftMask],
        neurons: Mapping[str, SoftMask],
    ) -> None:
        self._model, self._example, self._wiring = model, example, wiring
        self._weights, self._neurons = weights, neurons

    def check(self, target: float | None, kind: str) -> None:
        """Refuses a target that cannot be reached.

        Raises:
            MethodError: What layers keep at least is more: one connection, or without masks of neurons one weight.
        """
        if target is None:
            return
        least, whole = sum(self._least(name) for name in self._wiring.edges), sum(self._wiring.edges.values())
        if target * whole < least:
            raise MethodError(
                f"--{kind} {target:g}: what layers keep at least is a share of {least / whole:.2g}; ask for more"
            )

    def _least(self, name: str) -> float:
        """Connections that a layer keeps whatever the masks."""
        around = {*self._wiring.feeds.get(name, ()), *self._wiring.reads.get(name, ())}
        if around & set(self._neurons):
            return 1.0
        return self._wiring.positions[name] if name in self._weights else self._wiring.edges[name]

    def share(self, rates: Mapping[str, float] | None) -> float:
        """Share of the connections that hard masks leave; with rates, of the synaptic operations."""
        counted = count_connections(
            self._model,
            self._example,
            self._wiring,
            {name: mask.kept for name, mask in self._weights.items()},
            {name: mask.kept for name, mask in self._neurons.items()},
        )
        factors = {name: 1.0 if rates is None else rates.get(name, 1.0) for name in counted}
        whole = sum(self._wiring.edges[name] * factors[name] for name in counted)
        return sum(counted[name] * factors[name] for name in counted) / whole if whole else 1.0

    @staticmethod
    def planned(first: float, target: float, done: float) -> float:
        """Share that is to be left after part of a run: from `first` to the target, at the same rate.

        Args:
            first: What was left after the first epoch.
            target: What is to be left in the end.
            done: Part of the run that is over, between 0 and 1.
        """
        part = min(1.0, done / _SETTLED)
        return float(first ** (1 - part) * target**part)

    def reach(self, target: float, rates: Mapping[str, float] | None) -> None:
        """Moves the threshold of all masks to where the target is left, and no more; the scores' order decides."""
        scores = torch.cat([mask.scores.detach().flatten() for mask in self._masks()]).sort().values
        low, high = 0, len(scores) - 1  # at `high` every mask is down to what it has to keep
        while low < high:
            middle = (low + high) // 2
            self.set_threshold(float(scores[middle]))
            low, high = (low, middle) if self.share(rates) <= target else (middle + 1, high)
        self.set_threshold(float(scores[low]))

    def _masks(self) -> list[SoftMask]:
        return [*self._weights.values(), *self._neurons.values()]

    def set_threshold(self, threshold: float) -> None:
        """Sets the threshold of all masks."""
        for mask in self._masks():
            mask.threshold = threshold
