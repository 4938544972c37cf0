"""Making the neurons of a spiking network fire, so that two networks can be compared.

On a few numbers most neurons of a network stay silent, and a silent neuron hides everything before it: removed and
masked networks would always agree. So they are compared a second time with thresholds at which neurons
fire.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, call
from prunecli.measure.neurons import package_of, spiking_neurons

_FIRING = 0.75
"""The threshold is set to this quantile of a layer's potentials in the first step."""
_NO_TIE = 0.9731
"""So that no potential lies exactly on the threshold, where the last bit of a sum decides."""


def with_active_neurons(
    first: nn.Module, second: nn.Module, inputs: Inputs, former: Mapping[str, str] | None = None
) -> tuple[nn.Module, nn.Module] | None:
    """Copies of two networks in which about a quarter of all neurons fire on `inputs`; None without neurons.

    Args:
        first: Decides on the thresholds, layer by layer.
        second: A network with the same neurons; gets the same thresholds.
        inputs: Inputs that both accept.
        former: Names of the second network's modules in the first one; None where they are the same.
    """
    if not spiking_neurons(first):
        return None
    first, second = copied(first), copied(second)
    neurons = spiking_neurons(first)
    seen: set[nn.Module] = set()

    def lower(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module not in seen:
            seen.add(module)
            package = package_of(module)
            rest = package.rest(module)
            with closing(package.charged(module, args)) as steps:
                thresholds = (_threshold(_sorted(charged), rest) for charged in steps)
                threshold = next((value for value in thresholds if value is not None), None)
            if threshold is not None:
                package.set_threshold(module, threshold)

    hooks = [module.register_forward_pre_hook(lower) for module in neurons.values()]
    try:
        with torch.no_grad():
            call(first, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name, module in spiking_neurons(second).items():
        other = neurons[name if former is None else former[name]]
        package_of(module).set_threshold(module, package_of(other).threshold(other))
    return first, second


def _sorted(potentials: Tensor) -> Tensor:
    flat = potentials.flatten()
    return flat[flat.isfinite()].sort().values


def _threshold(potentials: Tensor, rest: float) -> float | None:
    """A threshold that the upper part of sorted potentials reaches; None where none of them leaves `rest`."""
    level = float(potentials[int(_FIRING * (len(potentials) - 1))]) if len(potentials) else rest
    if level == rest:
        risen = potentials[potentials > rest]
        if len(risen) == 0:
            return None
        level = float(risen[len(risen) // 2])
    return rest + _NO_TIE * (level - rest) if level > rest else rest + (level - rest) / _NO_TIE
