"""Making the neurons of a spiking network fire, so that two networks can be compared.

On a few numbers most neurons of a network stay silent, and a silent neuron hides everything before it: removed and
masked networks would always agree. So they are compared a second time with thresholds at which neurons
fire.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, call
from prunecli.measure.neurons import spiking_neurons

_FIRING = 0.75
"""The threshold is set to this quantile of a layer's potentials in the first step."""
_NEVER = 1e30
_NO_TIE = 0.9731
"""So that no potential lies exactly on the threshold, where the last bit of a sum decides."""


def with_active_neurons(first: nn.Module, second: nn.Module, inputs: Inputs) -> tuple[nn.Module, nn.Module] | None:
    """Copies of two networks in which about a quarter of all neurons fire on `inputs`; None without neurons.

    Args:
        first: Decides on the thresholds, layer by layer.
        second: A network with the same neurons; gets the same thresholds.
        inputs: Inputs that both accept.
    """
    if not spiking_neurons(first):
        return None
    first, second = copied(first), copied(second)
    neurons = spiking_neurons(first)
    seen: set[nn.Module] = set()

    def lower(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module not in seen:
            seen.add(module)
            threshold = next((value for value in _thresholds(module, args[0]) if value is not None), None)
            if threshold is not None:
                _set_threshold(module, threshold)

    hooks = [module.register_forward_pre_hook(lower) for module in neurons.values()]
    try:
        with torch.no_grad():
            call(first, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name, module in spiking_neurons(second).items():
        _set_threshold(module, _threshold_of(neurons[name]))
    return first, second


def _thresholds(module: nn.Module, current: Any) -> list[float | None]:
    """For each step a threshold that potentials reach if none has fired before; the module was just reset."""
    before, rest = _threshold_of(module), float(module.v_reset or 0.0)  # type: ignore[arg-type]
    _set_threshold(module, _NEVER)
    thresholds = []
    for step in current if module.step_mode == "m" else current[None]:
        module.single_step_forward(step)  # type: ignore[operator]
        flat = module.v.detach().flatten()  # type: ignore[operator]
        thresholds.append(_threshold(flat[flat.isfinite()].sort().values, rest))
    module.reset()  # type: ignore[operator]
    _set_threshold(module, before)
    return thresholds


def _threshold_of(module: nn.Module) -> float:
    threshold: Any = module.v_threshold
    return float(threshold.detach() if isinstance(threshold, Tensor) else threshold)


def _set_threshold(module: nn.Module, value: float) -> None:
    if isinstance(module.v_threshold, Tensor):  # a learned one
        module.v_threshold.detach().fill_(value)
    else:
        module.v_threshold = value  # type: ignore[assignment]


def _threshold(potentials: Tensor, rest: float) -> float | None:
    """A threshold that the upper part of sorted potentials reaches; None where none of them leaves `rest`."""
    level = float(potentials[int(_FIRING * (len(potentials) - 1))]) if len(potentials) else rest
    if level == rest:
        risen = potentials[potentials > rest]
        if len(risen) == 0:
            return None
        level = float(risen[len(risen) // 2])
    return rest + _NO_TIE * (level - rest) if level > rest else rest + (level - rest) / _NO_TIE
