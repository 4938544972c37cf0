"""Masks in checkpoints: one bit for each weight or spike.

A masked weight is zero in the file too. The bits say which zeros are held there, and are checked against the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunecli.checkpoint.manifest import Masks
from prunecli.errors import ModelError

SPIKE_MASK = "spike_mask"
"""Name of the buffer that masks a module's spikes."""
_BITS = ".mask_bits"


def bits_name(parameter: str) -> str:
    """Name in the file of the mask of a parameter."""
    return parameter + _BITS


def spike_mask_name(module: str) -> str:
    """Name of the mask of a module's spikes."""
    return f"{module}.{SPIKE_MASK}" if module else SPIKE_MASK


def masks_of(tensors: Mapping[str, Tensor], masks: Masks) -> Masks:
    """The same masks with the shapes that they have now, which slicing has changed.

    Args:
        tensors: All tensors of the network.
        masks: Which are masked.
    """
    spikes = {name: tuple(tensors[spike_mask_name(name)].shape) for name in masks.spikes}
    return Masks(weights=[name for name in masks.weights if name in tensors], spikes=spikes)


def packed(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Tensors for the file: masks of weights are added, masks of spikes replaced, both as bits."""
    stored = dict(tensors)
    for name in masks.weights:
        stored[bits_name(name)] = _bits(tensors[name] != 0)
    for name in masks.spikes:
        stored[spike_mask_name(name)] = _bits(tensors[spike_mask_name(name)])
    return stored


def unpacked(stored: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """The opposite of `packed`.

    Raises:
        ModelError: A mask is missing, has another size, or a weight that it masks is not zero.
    """
    tensors = dict(stored)
    for name in masks.weights:
        bits, weight = tensors.pop(bits_name(name), None), tensors.get(name)
        if weight is None:
            raise ModelError(f"the masks do not fit the checkpoint: it has no {name}; the file was altered")
        if bool((weight[~_mask(bits, tuple(weight.shape), name)] != 0).any()):
            raise ModelError(f"the masks do not fit the checkpoint: {name} has a masked weight that is not zero")
    for name, shape in masks.spikes.items():
        full = spike_mask_name(name)
        tensors[full] = _mask(tensors.get(full), shape, full)
    return tensors


def _bits(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().astype(np.bool_)))


def _mask(bits: Tensor | None, shape: tuple[int, ...], name: str) -> Tensor:
    size = math.prod(shape)
    if bits is None or bits.dtype != torch.uint8 or bits.shape != (math.ceil(size / 8),):
        raise ModelError(f"the masks do not fit the checkpoint: that of {name} is missing or has another size")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(np.bool_)).reshape(shape)


def renamed(masks: Masks, former: Mapping[str, str]) -> Masks:
    """The masks of a network whose modules are called otherwise, or are gone.

    Args:
        masks: The masks as they were.
        former: From the names of its modules to those that they had.
    """
    names: dict[str, list[str]] = {}
    for weight in masks.weights:
        module, _, leaf = weight.rpartition(".")
        names.setdefault(module, []).append(leaf)
    weights = [f"{new}.{leaf}".lstrip(".") for new, old in former.items() for leaf in names.get(old, ())]
    spikes = {new: masks.spikes[old] for new, old in former.items() if old in masks.spikes}
    return Masks(weights=weights, spikes=spikes)
