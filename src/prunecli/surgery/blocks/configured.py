"""What a model of transformers says of its depth: numbers of layers, their kinds, and where their caches are.

It is built anew from configurations in which one number or list is that of the smaller network. If one of them gives
the modules that are left, and with the same weights the same outputs, its attributes are what the library itself sets.
The network may then be saved and loaded by the library, too.
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

from prunecli.checkpoint.manifest import RemovedBlock
from prunecli.copying import copied, sharing_parameters
from prunecli.inputs import Inputs, call, fitted, output_tensors
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.removal.rebuild import Attributes, attribute_differences
from prunecli.surgery.tracing.running import plain_kernels, seeded

_BY_LAYER = ("layer", "block", "attention", "attn", "types", "pattern")
"""Parts of the names of lists in a configuration that may have an entry for every layer, or numbers of layers."""
_ABOUT_DEPTH = ("layer", "depth", "block")
"""Parts of the names of configuration entries that are tried first."""
_SAME = 1e-5
"""Largest difference, relative to the largest output, between two networks of one precision that compute the same."""


@dataclass(frozen=True)
class Rebuilt:
    """A model as the library builds it from a configuration with fewer layers.

    Attributes:
        name: The module in the network that is such a model; empty for the network itself.
        model: The model, its parameters without values.
        attributes: What differs from the network without its blocks, for `apply_attributes`. Floating numbers are left
            out: a rate of stochastic depth belongs to its block.
    """

    name: str
    model: nn.Module
    attributes: Attributes

    def computes_the_same(self, network: nn.Module, inputs: Inputs) -> bool:
        """Whether the library's model computes what the network computes, with its weights.

        Where the network's weights have other shapes, no configuration gives it anyway, and nothing is compared.

        Args:
            network: The network without its blocks, with these attributes.
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


def is_configured(model: nn.Module, removed: Sequence[RemovedBlock]) -> bool:
    """Whether the blocks are those of a model that transformers builds from a configuration."""
    return _owner(model, removed) is not None


def rebuilt_with_fewer(model: nn.Module, removed: Sequence[RemovedBlock]) -> Rebuilt | None:
    """A model without these blocks as transformers builds it.

    Args:
        model: The network with the blocks; not changed.
        removed: As for `take_out`.

    Returns:
        None if the network is none of transformers, or no configuration gives the modules that are left.
    """
    name = _owner(model, removed)
    if name is None:
        return None
    prefix = f"{name}." if name else ""
    own = [RemovedBlock(name=block.name.removeprefix(prefix), left=block.left) for block in removed]
    built = _built(model.get_submodule(name), own)
    if built is None:
        return None
    found = {f"{prefix}{inner}".rstrip("."): values for inner, values in built[1].items()}
    return Rebuilt(name, built[0], found)


def _owner(model: nn.Module, removed: Sequence[RemovedBlock]) -> str | None:
    names: list[str] = [name for name, module in model.named_modules() if _is_configured(module)]
    around = (name for name in names if all(block.name.startswith(f"{name}." if name else "") for block in removed))
    return next(around, None)


def _is_config(value: Any) -> bool:
    return any(
        kind.__name__ in ("PreTrainedConfig", "PretrainedConfig") and kind.__module__.startswith("transformers.")
        for kind in type(value).__mro__
    )


def _is_configured(module: nn.Module) -> bool:
    own = any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__)
    return own and _is_config(getattr(module, "config", None))


def _built(model: nn.Module, removed: Sequence[RemovedBlock]) -> tuple[nn.Module, Attributes] | None:
    kind: Any = type(model)
    config: Any = copy.deepcopy(model.config)

    def build(configuration: Any) -> nn.Module | None:
        try:
            with _parameters_on_meta():
                built: nn.Module = kind(copy.deepcopy(configuration))
        except Exception:  # whatever the library says to a configuration that makes no sense
            return None
        return built

    full = build(config)
    if full is None or _structure(full) != _structure(model):
        return None
    shortened = copied(full)
    by_list: dict[str, list[RemovedBlock]] = {}
    for block in removed:
        by_list.setdefault(block.name.rpartition(".")[0], []).append(block)
    smaller: nn.Module | None = full
    for parent, blocks in by_list.items():
        length = len(list(shortened.get_submodule(parent).children()))
        take_out(shortened, blocks)
        wanted = _structure(shortened)
        indices = [int(block.name.rpartition(".")[2]) for block in blocks if block.name.rpartition(".")[2].isdigit()]
        if len(indices) < len(blocks):
            return None
        for changed in _changed(config, length, frozenset(indices)):
            smaller = build(changed)
            if smaller is not None and _structure(smaller) == wanted:
                config = changed
                break
        else:
            return None
    assert smaller is not None
    counterpart = sharing_parameters(smaller)
    for name, module in list(shortened.named_modules()):
        if _is_empty(module):  # whether dropout is there may depend on a layer's number
            parent, _, leaf = name.rpartition(".")
            setattr(counterpart.get_submodule(parent), leaf, module)
    return smaller, _without_floats(attribute_differences(shortened, counterpart))


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


def _structure(model: nn.Module) -> dict[str, type | None]:
    """Names and classes of modules; no class for those that hold nothing, such as dropout."""
    return {
        name: None if _is_empty(module) else type_before_parametrizations(module)
        for name, module in model.named_modules()
    }


def _is_empty(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) and not module._parameters and not module._buffers


@dataclass(frozen=True)
class _Entry:
    """A number in a configuration.

    Attributes:
        path: Names of the configurations around it.
        name: Its own name.
        index: Its position, if it is in a list.
    """

    path: tuple[str, ...]
    name: str
    index: int | None = None


def _changed(config: Any, length: int, removed: frozenset[int]) -> Iterator[Any]:
    """Configurations that may be those of a network in which a list of that length has lost entries."""
    entries = list(_entries(config, lambda value: type(value) is int and value == length))
    entries.sort(key=lambda entry: not any(part in entry.name for part in _ABOUT_DEPTH))
    for entry in entries:
        tried: list[dict[str, Any]] = []
        for change in (_both, _shorter, _renumbered, None):
            changed = copy.deepcopy(config)
            owner = changed
            for name in entry.path:
                owner = getattr(owner, name)
            lists = {name: value for name, value in vars(owner).items() if _is_list(value) and name != entry.name}
            lists = {name: value for name, value in lists.items() if any(part in name for part in _BY_LAYER)}
            news = {name: change(value, length, removed) if change else value for name, value in lists.items()}
            if news in tried:
                continue
            tried.append(news)
            for name, values in news.items():
                object.__setattr__(owner, name, type(lists[name])(values))
            _set(owner, entry, length - len(removed))
            yield changed


def _is_list(value: Any) -> bool:
    return type(value) in (list, tuple)


def _shorter(values: Sequence[Any], length: int, removed: frozenset[int]) -> list[Any]:
    """A list with an entry for every layer, without those of the removed ones."""
    gone = removed if len(values) == length else ()
    return [value for index, value in enumerate(values) if index not in gone]


def _renumbered(values: Sequence[Any], length: int, removed: frozenset[int]) -> list[Any]:
    """A list of numbers of layers, as they are counted without the removed ones."""
    if not all(type(value) is int and 0 <= value < length for value in values) or len(set(values)) < len(values):
        return list(values)
    return [value - sum(gone < value for gone in removed) for value in values if value not in removed]


def _both(values: Sequence[Any], length: int, removed: frozenset[int]) -> list[Any]:
    return _shorter(values, length, removed) if len(values) == length else _renumbered(values, length, removed)


def _set(owner: Any, entry: _Entry, value: int) -> None:
    if entry.index is None:
        object.__setattr__(owner, entry.name, value)
        return
    values = list(vars(owner)[entry.name])
    values[entry.index] = value
    object.__setattr__(owner, entry.name, type(vars(owner)[entry.name])(values))


def _entries(config: Any, wanted: Callable[[Any], bool], path: tuple[str, ...] = ()) -> Iterator[_Entry]:
    for name, value in vars(config).items():
        if _is_config(value):
            yield from _entries(value, wanted, (*path, name))
        elif wanted(value):
            yield _Entry(path, name)
        elif _is_list(value):
            yield from (_Entry(path, name, index) for index, item in enumerate(value) if wanted(item))


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
