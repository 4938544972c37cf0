"""Spiking neurons in a network: finding them, and resetting their membrane potentials.

A neuron keeps its membrane potential between calls. Without a reset a network silently computes something else, so
every pass goes through `without_memory` or a network that resets itself.
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
    nodes = sys.modules.get(_NODES)  # if it was never imported, no module can be an instance
    if nodes is None:
        return {}
    classes = (nodes.BaseNode, nodes.SimpleBaseNode)
    return {name: module for name, module in model.named_modules() if isinstance(module, classes)}


def counted(module: nn.Module, output: Tensor) -> Tensor:
    """Converts a neuron's output to numbers of spikes: the -1 of a ternary neuron is a spike too."""
    nodes: Any = sys.modules[_NODES]
    return output.abs() if isinstance(module, (nodes.TernaryIFNode, nodes.TernaryLIFNode)) else output


def unknown_neurons(model: nn.Module) -> dict[str, str]:
    """Class names of spikingjelly's neurons that are not among `spiking_neurons`, such as PSN, by module name."""
    known = spiking_neurons(model)
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if type(module).__module__.startswith(_NODES) and name not in known
    }


def reset(model: nn.Module) -> None:
    """Resets every module with memory (neurons, recurrent containers) to its state before a new sample."""
    base: Any = sys.modules.get(_BASE)
    if base is None:
        return
    for module in model.modules():
        if isinstance(module, base.MemoryModule):
            module.reset()


def reset_itself(model: nn.Module) -> None:
    """Adds hooks that reset a network before and after each pass; copies of the network keep them."""
    model.register_forward_pre_hook(_before)
    model.register_forward_hook(_after, always_call=True)


def leave_to_caller(model: nn.Module) -> None:
    """Removes the hooks of `reset_itself`."""
    for hooks, own in ((model._forward_pre_hooks, _before), (model._forward_hooks, _after)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]


def _before(module: nn.Module, args: Any) -> None:
    reset(module)


def _after(module: nn.Module, args: Any, output: Any) -> None:
    reset(module)


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Resets the network before and after, even on an error, so that no state is carried over."""
    reset(model)
    try:
        yield
    finally:
        reset(model)
