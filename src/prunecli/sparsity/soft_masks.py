"""Masks that harden while they are learned: sigmoid(temperature * (score - threshold)), in the end score > threshold.

After Shi et al., Towards Energy Efficient Spiking Neural Networks: An Unstructured Pruning Framework (ICLR 2024), where
the threshold is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunecli.sparsity.spike_masks import multiplied

_MASK = "soft_spike_mask"


class SoftMask(nn.Module):
    """A mask with a score for each position.

    The scores are saved with the network. They take gradients only once `learn` is called, so that an optimizer which
    is made for the network before that leaves them out.

    Args:
        scores: Scores at the start.

    Attributes:
        temperature: Steepness.
        threshold: Positions with a higher score stay.
        hard: Whether the mask is already 0 or 1.
    """

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores.detach().clone(), requires_grad=False)
        self.temperature, self.threshold, self.hard = 1.0, 0.0, False

    def learn(self) -> nn.Parameter:
        """The scores, which take gradients from now on."""
        self.scores.requires_grad_(True)
        return self.scores

    @property
    def kept(self) -> Tensor:
        """What stays, booleans in the shape of the scores; never nothing."""
        stays = self.scores.detach() > self.threshold
        if not bool(stays.any()):
            stays[torch.unravel_index(self.scores.detach().argmax(), stays.shape)] = True
        return stays

    @property
    def share(self) -> Tensor:
        """The mask itself, differentiable unless it is hard."""
        return (
            self.kept.to(self.scores.dtype)
            if self.hard
            else torch.sigmoid(self.temperature * (self.scores - self.threshold))
        )

    def forward(self, values: Tensor) -> Tensor:
        """The masked values; they may have more dimensions at the front."""
        return values * self.share


def soften_weight(layer: nn.Module, scores: Tensor) -> SoftMask:
    """Masks the weight of a layer from now on."""
    mask = SoftMask(scores)
    parametrize.register_parametrization(layer, "weight", mask)
    return mask


def harden_weight(layer: nn.Module) -> None:
    """Puts the hard-masked weight in the place of the softly masked one."""
    mask: Any = layer.parametrizations["weight"][0]  # type: ignore[index]
    kept = mask.kept
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    with torch.no_grad():
        layer.weight.mul_(kept)  # type: ignore[operator]


def soften_spikes(neuron: nn.Module, scores: Tensor) -> SoftMask:
    """Masks what a neuron returns from now on."""
    mask = SoftMask(scores)
    neuron.add_module(_MASK, mask)
    neuron.register_forward_hook(_masked)
    return mask


def bare_spikes(neuron: nn.Module) -> None:
    """Removes the soft mask of a neuron."""
    del neuron._modules[_MASK]
    for key in [key for key, hook in neuron._forward_hooks.items() if hook is _masked]:
        del neuron._forward_hooks[key]


def _masked(neuron: nn.Module, args: Any, output: Any) -> Any:
    mask: Any = neuron._modules[_MASK]
    return multiplied(output, mask.share)
