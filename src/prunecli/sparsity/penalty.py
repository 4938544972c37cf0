"""How many connections soft masks leave, as a share of all.

Shi et al. (ICLR 2024) count, for each weight, how often it is used, and for each neuron, how many connections leave it.
Here the sum is divided by its value with every mask open, so that a weight of the penalty means the same in every
network. By synaptic operations, each term counts with the firing rate of the neurons that it starts from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunecli.sparsity.connections import Wiring
from prunecli.sparsity.soft_masks import SoftMask


class Penalty:
    """The share of connections, or of synaptic operations, that masks leave.

    Args:
        wiring: The network's wiring.
        weights: Masks of weights by layer.
        neurons: Masks of neurons by layer of neurons.
        by_rate: Whether terms count with firing rates.
    """

    def __init__(
        self, wiring: Wiring, weights: Mapping[str, SoftMask], neurons: Mapping[str, SoftMask], *, by_rate: bool
    ) -> None:
        self._wiring, self._weights, self._neurons, self._by_rate = wiring, weights, neurons, by_rate

    def __call__(self, rates: Mapping[str, float]) -> Tensor:
        """Between 0 and 1, differentiable.

        Args:
            rates: Firing rate of each layer of neurons, and of what each layer takes in, by name; if not `by_rate`, not
                used.
        """
        terms, whole = [], 0.0
        for name, mask in self._weights.items():
            factor = self._wiring.positions[name] * self._rate(rates, name)
            terms.append(factor * mask.share.sum())
            whole += factor * mask.scores.numel()
        for name, mask in self._neurons.items():
            factor = self._wiring.fan_out[name] * self._rate(rates, name)
            terms.append(factor * mask.share.sum())
            whole += factor * mask.scores.numel()
        return torch.stack(terms).sum() / max(whole, 1e-12)

    def _rate(self, rates: Mapping[str, float], name: str) -> float:
        return rates.get(name, 1.0) if self._by_rate else 1.0
