"""Making the neurons of a spiking network fire, so that a comparison of two networks has something to compare.

On a few numbers most neurons of a network stay silent, and a silent neuron hides whatever lies before it: removed and
masked networks would agree whatever was done. So they are compared a second time with thresholds at which neurons
fire.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.measure.forward import Inputs, call
from prunecli.measure.neurons import spiking_neurons

_FIRING = 0.75
"""Quantile of a neuron layer's input that would just fire at once."""
_NO_TIE = 0.9731
"""So that no potential lies exactly on the threshold, where the last bit of a sum decides."""


def awake(first: nn.Module, second: nn.Module, inputs: Inputs) -> tuple[nn.Module, nn.Module] | None:
    """Copies of two networks in which about a quarter of all neurons fire on `inputs`; None without neurons.

    Args:
        first: Decides on the thresholds, layer by layer.
        second: A network with the same neurons; gets the same thresholds.
        inputs: Inputs that both accept.
    """
    if not spiking_neurons(first):
        return None
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    neurons = spiking_neurons(first)
    seen: set[nn.Module] = set()

    def lower(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module not in seen:
            seen.add(module)
            threshold = _threshold(args[0], float(getattr(module, "tau", 1.0)))
            if threshold is not None:
                module.v_threshold = threshold  # type: ignore[assignment]

    hooks = [module.register_forward_pre_hook(lower) for module in neurons.values()]
    try:
        with torch.no_grad():
            call(first, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name, module in spiking_neurons(second).items():
        module.v_threshold = neurons[name].v_threshold
    return first, second


def _threshold(current: Tensor, tau: float) -> float | None:
    """A threshold that the upper part of `current` reaches; None where nothing positive arrives."""
    flat = current.detach().flatten().sort().values
    reached = float(flat[int(_FIRING * (len(flat) - 1))])
    if reached <= 0:
        positive = flat[flat > 0]
        if len(positive) == 0:
            return None
        reached = float(positive[len(positive) // 2])
    return _NO_TIE * reached / tau
