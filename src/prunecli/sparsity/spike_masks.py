"""Masks of spikes: neurons that never fire, whatever they receive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Masks
from prunecli.checkpoint.masks import SPIKE_MASK
from prunecli.errors import ModelError


def mask_spikes(neuron: nn.Module, mask: Tensor) -> None:
    """Multiplies what a module returns by a mask from now on.

    The mask is a buffer, so it moves, is saved and is sliced with the network.

    Args:
        neuron: A module that returns spikes (T, N, *shape) or (N, *shape).
        mask: Booleans of that shape, without steps and samples.
    """
    if SPIKE_MASK not in neuron._buffers:
        neuron.register_buffer(SPIKE_MASK, mask)
        neuron.register_forward_hook(_masked)
    else:
        neuron._buffers[SPIKE_MASK] = mask


def install(model: nn.Module, masks: Masks) -> None:
    """Gives a freshly built network the masks that a checkpoint has, still without values.

    Raises:
        ModelError: A module does not exist.
    """
    modules = dict(model.named_modules())
    for name, shape in masks.spikes.items():
        if name not in modules:
            raise ModelError(f"the masks do not fit the network: it has no module {name!r}")
        mask_spikes(modules[name], torch.ones(shape, dtype=torch.bool))


def masked_spikes(model: nn.Module) -> dict[str, Tensor]:
    """Masks of spikes by module name."""
    found = {name: module._buffers.get(SPIKE_MASK) for name, module in model.named_modules()}
    return {name: mask for name, mask in found.items() if mask is not None}


def multiplied(output: Any, mask: Tensor) -> Any:
    """What a neuron returned with its spikes multiplied, whether there is a state beside them or not."""
    return (output[0] * mask, *output[1:]) if isinstance(output, tuple) else output * mask


def _masked(neuron: nn.Module, args: Any, output: Any) -> Any:
    mask: Tensor = getattr(neuron, SPIKE_MASK)
    spikes: Tensor = output[0] if isinstance(output, tuple) else output
    if spikes.shape[-mask.dim() :] != mask.shape:
        raise ModelError(
            f"the network's spikes are masked by position for an output of {tuple(mask.shape)}, not "
            f"{tuple(spikes.shape[-mask.dim() :])}; give inputs of the size that it was masked with"
        )
    return multiplied(output, mask.to(spikes.dtype))
