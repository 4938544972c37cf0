"""Models of transformers as the library builds them from a changed configuration.

If such a model has the modules and tensors that are left, and with the same weights the same outputs, its attributes
are what the library itself sets. The network may then be saved and loaded by the library, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from prunecli.copying import sharing_parameters
from prunecli.inputs import Inputs, call, fitted, output_tensors
from prunecli.surgery.removal.rebuild import Attributes, attribute_differences
from prunecli.surgery.tracing.running import plain_kernels, seeded

_SAME = 1e-5
"""Largest difference, relative to the largest output, between two networks of one precision that compute the same."""
NOT_CONFIGURED = (
    "no configuration of transformers describes what is left, so its save_pretrained does not restore this network; "
    "the checkpoint does"
)


@dataclass(frozen=True)
class Rebuilt:
    """A model as the library builds it from a configuration with fewer layers.

    Attributes:
        name: The module in the network that is such a model; empty for the network itself.
        model: The model, its parameters without values.
        attributes: What differs from the network without its parts, for `apply_attributes`. Floating numbers are left
            out: a rate of stochastic depth belongs to its block.
    """

    name: str
    model: nn.Module
    attributes: Attributes

    def computes_the_same(self, network: nn.Module, inputs: Inputs) -> bool:
        """Whether the library's model computes what the network computes, with its weights.

        Where the network's weights have other shapes, no configuration gives it anyway, and nothing is compared.

        Args:
            network: The network without its parts, with these attributes.
            inputs: Inputs that it accepts.
        """
        own = network.get_submodule(self.name)
        shapes = {name: tensor.shape for name, tensor in own.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in self.model.state_dict().items()}:
            return True
        self.model.load_state_dict(own.state_dict(), assign=True)
        whole = self.model
        if self.name:
            whole = sharing_parameters(network)
            parent, _, leaf = self.name.rpartition(".")
            setattr(whole.get_submodule(parent), leaf, self.model)
        with torch.no_grad(), plain_kernels(), seeded():
            expected = output_tensors(call(sharing_parameters(network).eval(), fitted(inputs, network)))
            try:
                found = output_tensors(call(whole.eval(), fitted(inputs, network)))
            except Exception:  # whatever the library's code says
                return False
        return len(found) == len(expected) and all(map(_alike, expected, found))


def _alike(expected: torch.Tensor, found: torch.Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return torch.allclose(expected.double(), found.double(), rtol=0, atol=_SAME * scale, equal_nan=True)


def owner(model: nn.Module, inside: Sequence[str]) -> str | None:
    """Name of the outermost model that transformers builds from a configuration, around modules; None without one."""
    names: list[str] = [name for name, module in model.named_modules() if _is_configured(module)]
    return next((name for name in names if all(part.startswith(f"{name}." if name else "") for part in inside)), None)


def _is_config(value: Any) -> bool:
    return any(
        kind.__name__ in ("PreTrainedConfig", "PretrainedConfig") and kind.__module__.startswith("transformers.")
        for kind in type(value).__mro__
    )


def _is_configured(module: nn.Module) -> bool:
    own = any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__)
    return own and _is_config(getattr(module, "config", None))


def built(model: nn.Module, config: Any) -> nn.Module | None:
    """A model of that class and configuration, its parameters without values; None if the library refuses it."""
    kind: Any = type(model)
    try:
        with _parameters_on_meta():
            made: nn.Module = kind(copy.deepcopy(config))
    except Exception:  # whatever the library says to a configuration that makes no sense
        return None
    return made


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that are made take no memory; buffers, which code computes, have their values."""
    register: Any = nn.Module.register_parameter

    def register_without_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            empty = parameter.detach().to("meta")
            module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_without_values  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def structure(model: nn.Module) -> dict[str, type | None]:
    """Names and classes of modules; no class for those that hold nothing, such as dropout."""
    return {
        name: None if _is_empty(module) else type_before_parametrizations(module)
        for name, module in model.named_modules()
    }


def _is_empty(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and not module._parameters and not module._buffers


def differences(shortened: nn.Module, smaller: nn.Module, prefix: str) -> Attributes:
    """Attributes of a smaller model that differ, other than floating numbers.

    Args:
        shortened: A freshly built model without its parts.
        smaller: The model that the library builds without them.
        prefix: What names of its modules begin with in the network.
    """
    counterpart = sharing_parameters(smaller)
    for name, module in list(shortened.named_modules()):
        if _is_empty(module):  # whether dropout is there may depend on a layer's number
            parent, _, leaf = name.rpartition(".")
            setattr(counterpart.get_submodule(parent), leaf, module)
    found = _without_floats(attribute_differences(shortened, counterpart))
    return {f"{prefix}{inner}".rstrip("."): values for inner, values in found.items()}


@dataclass(frozen=True)
class Entry:
    """A number in a configuration.

    Attributes:
        path: Names of the configurations around it.
        name: Its own name.
        index: Its position, if it is in a list.
    """

    path: tuple[str, ...]
    name: str
    index: int | None = None


def holder(config: Any, entry: Entry) -> Any:
    """The configuration that an entry is in."""
    for name in entry.path:
        config = getattr(config, name)
    return config


def set_entry(owner: Any, entry: Entry, value: int) -> None:
    if entry.index is None:
        object.__setattr__(owner, entry.name, value)
        return
    values = list(vars(owner)[entry.name])
    values[entry.index] = value
    object.__setattr__(owner, entry.name, type(vars(owner)[entry.name])(values))


def entries(config: Any, wanted: Callable[[Any], bool], path: tuple[str, ...] = ()) -> Iterator[Entry]:
    for name, value in vars(config).items():
        if _is_config(value):
            yield from entries(value, wanted, (*path, name))
        elif wanted(value):
            yield Entry(path, name)
        elif is_list(value):
            yield from (Entry(path, name, index) for index, item in enumerate(value) if wanted(item))


def is_list(value: Any) -> bool:
    return type(value) in (list, tuple)


def _without_floats(attributes: Attributes) -> Attributes:
    kept = {name: {key: _no_floats(value) for key, value in values.items()} for name, values in attributes.items()}
    kept = {name: {key: value for key, value in values.items() if value is not _FLOAT} for name, values in kept.items()}
    return {name: values for name, values in kept.items() if values}


_FLOAT: Any = object()


def _no_floats(value: JsonValue) -> Any:
    if isinstance(value, float) or (isinstance(value, list) and any(isinstance(item, float) for item in value)):
        return _FLOAT
    if isinstance(value, dict):
        kept = {key: _no_floats(item) for key, item in value.items()}
        kept = {key: item for key, item in kept.items() if item is not _FLOAT}
        return kept or _FLOAT
    return value
