"""Spiking neurons in a network: finding them, and resetting their membrane potentials.

A neuron keeps its membrane potential between calls. Without a reset a network silently computes something else, so
every pass goes through `without_memory` or a network that resets itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from prunecli.measure.neuron_packages.base import NeuronPackage

_PACKAGES = {
    "spikingjelly.activation_based.neuron": "prunecli.measure.neuron_packages.spikingjelly:SpikingJelly",
    "snntorch._neurons": "prunecli.measure.neuron_packages.snntorch:SNNTorch",
    "norse.torch.module.snn": "prunecli.measure.neuron_packages.norse:Norse",
}
"""By a module of the package: if that was never imported, none of a network's modules can be such a neuron."""


def spiking_neurons(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that integrate and fire, by dotted name in the model's order; empty for other networks."""
    packages = _imported()
    return {name: module for name, module in model.named_modules() if any(p.is_neuron(module) for p in packages)}


def package_of(neuron: nn.Module) -> NeuronPackage:
    """The package of one of the `spiking_neurons`."""
    return next(package for package in _imported() if package.is_neuron(neuron))


def unwatched_neurons(model: nn.Module) -> dict[str, str]:
    """Class names of neurons that are not among `spiking_neurons`, such as spikingjelly's PSN, by module name."""
    packages = _imported()
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if any(package.is_unwatched(module) for package in packages)
    }


def reset(model: nn.Module) -> None:
    """Resets every module with memory (neurons, recurrent containers) to its state before a new sample."""
    for package in _imported():
        for module in model.modules():
            package.reset(module)


def _imported() -> list[NeuronPackage]:
    return [_package(name) for name in _PACKAGES if name in sys.modules]


@cache
def _package(name: str) -> NeuronPackage:
    module, _, kind = _PACKAGES[name].partition(":")
    package: NeuronPackage = getattr(import_module(module), kind)()
    return package


def reset_itself(model: nn.Module) -> None:
    """Adds hooks that reset a network before and after each pass; copies of the network keep them."""
    model.register_forward_pre_hook(_before)
    model.register_forward_hook(_after, always_call=True)


def leave_to_caller(model: nn.Module) -> None:
    """Removes the hooks of `reset_itself`; what packages have to reset all neurons reaches those of this network."""
    for hooks, own in ((model._forward_pre_hooks, _before), (model._forward_hooks, _after)):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]
    for package in _imported():
        package.adopt(model)


_running: list[ExitStack] = []
"""One for each pass of a network that resets itself and has begun, the innermost last."""


def _before(module: nn.Module, args: Any) -> None:
    own = ExitStack()
    for package in _imported():
        own.enter_context(package.own_instances(module))
    _running.append(own)
    reset(module)


def _after(module: nn.Module, args: Any, output: Any) -> None:
    reset(module)
    if _running:  # empty where another hook failed before `_before`
        _running.pop().close()


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Resets the network before and after, even on an error, so that no state is carried over."""
    reset(model)
    try:
        yield
    finally:
        reset(model)
