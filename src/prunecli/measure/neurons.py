"""Spiking neurons in a network: which modules they are, and forgetting what they have integrated.

A neuron carries its membrane potential from one call to the next. A network whose neurons were not reset computes
something else and raises nothing, so every pass goes through `without_memory` or a network that resets itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_BASE = "spikingjelly.activation_based.base"
_NODES = "spikingjelly.activation_based.neuron"


def spiking_neurons(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that integrate and fire, by dotted name in the model's order; empty for other networks."""
    nodes = sys.modules.get(_NODES)  # where it was never imported nothing can be one of its classes
    if nodes is None:
        return {}
    classes = (nodes.BaseNode, nodes.SimpleBaseNode)
    return {name: module for name, module in model.named_modules() if isinstance(module, classes)}


def counted(module: nn.Module, output: Tensor) -> Tensor:
    """What a neuron gave out as numbers of spikes: one of -1, as ternary neurons have, is a spike too."""
    nodes: Any = sys.modules[_NODES]
    return output.abs() if isinstance(module, (nodes.TernaryIFNode, nodes.TernaryLIFNode)) else output


def unknown_neurons(model: nn.Module) -> dict[str, str]:
    """The class of each of spikingjelly's neurons that is not among `spiking_neurons`, such as PSN."""
    known = spiking_neurons(model)
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if type(module).__module__.startswith(_NODES) and name not in known
    }


def reset(model: nn.Module) -> None:
    """Puts every module that remembers (neurons, recurrent containers) back to where a new sample begins."""
    base: Any = sys.modules.get(_BASE)
    if base is None:
        return
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()


def reset_itself(model: nn.Module) -> None:
    """Makes a network reset itself before and after each pass, by hooks that copies of it have too."""
    model.register_forward_pre_hook(_before)
    model.register_forward_hook(_after, always_call=True)


def leave_to_caller(model: nn.Module) -> None:
    """Takes the hooks of `reset_itself` off again."""
    for hooks, own in ((model._forward_pre_hooks, _before), (model._forward_hooks, _after)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]


def _before(module: nn.Module, args: Any) -> None:
    reset(module)


def _after(module: nn.Module, args: Any, output: Any) -> None:
    reset(module)


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Resets before and after, whatever happens in between, so that nothing is carried over in either direction."""
    reset(model)
    try:
        yield
    finally:
        reset(model)
