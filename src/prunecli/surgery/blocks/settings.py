"""What a network says of its depth in attributes: numbers of layers, their kinds, and where their caches are.

A model of transformers is built anew, on the meta device, from configurations in which one number or list is that of
the smaller network. If one of them gives the modules that are left, its attributes are what the library itself sets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import JsonValue
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from prunecli.checkpoint.manifest import RemovedBlock
from prunecli.copying import copied
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.removal.rebuild import Attributes, attribute_differences

_COUNTS = ("num_layers", "num_hidden_layers", "n_layers", "n_layer", "num_blocks", "n_blocks", "depth")
"""Attributes that hold how many entries a list of the same module has."""
_BY_LAYER = ("layer", "block", "attention", "attn", "types", "pattern")
"""Parts of the names of lists in a configuration that may have an entry for every layer, or numbers of layers."""
_ABOUT_DEPTH = ("layer", "depth", "block")
"""Parts of the names of configuration entries that are tried first."""


def adjust_records(model: nn.Module, before: nn.Module, former: Mapping[str, str]) -> None:
    """Sets what plain modules say of their lists: how many entries, and where timm finds features.

    Args:
        model: The network without the blocks; changed in place.
        before: The network with them.
        former: From the names of its modules to those they had.
    """
    for name, module in model.named_modules():
        if name in former:
            _adjust_counts(module, before.get_submodule(former[name]))
    now = {old: new for new, old in former.items()}
    known = {name for name, _ in before.named_modules()}
    for name, module in model.named_modules():
        info = getattr(module, "feature_info", None)
        if isinstance(info, list) and all(isinstance(entry, dict) and "module" in entry for entry in info):
            prefix, own = (f"{owner}." if owner else "" for owner in (former.get(name, name), name))
            places = [f"{prefix}{entry['module']}" for entry in info]
            moved = [
                entry | {"module": now[place].removeprefix(own)} if place in now else entry
                for entry, place in zip(info, places, strict=True)
                if place in now or place not in known
            ]
            object.__setattr__(module, "feature_info", moved)


def _adjust_counts(module: nn.Module, before: nn.Module) -> None:
    lengths = {name: len(child) for name, child in before.named_children() if isinstance(child, nn.ModuleList)}
    for name, length in lengths.items():
        now = len(getattr(module, name))
        for count in _COUNTS:
            value = vars(module).get(count)
            if now < length and type(value) is int and value == length and len(lengths) == 1:
                object.__setattr__(module, count, now)


def built_with_fewer(model: nn.Module, removed: Sequence[RemovedBlock]) -> Attributes | None:
    """The attributes that transformers sets when it builds the network without these blocks.

    Floating numbers stay as they are: a rate of stochastic depth belongs to its block.

    Args:
        model: The network with the blocks; not changed.
        removed: As for `take_out`.

    Returns:
        Attributes for `apply_attributes`; None if the network is none of transformers, or no configuration gives it.
    """
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if _is_configured(module) and all(block.name.startswith(prefix) for block in removed):
            own = [RemovedBlock(name=block.name.removeprefix(prefix), left=block.left) for block in removed]
            found = _built(module, own)
            if found is not None:
                return {f"{prefix}{inner}".rstrip("."): values for inner, values in found.items()}
            return None
    return None


def _is_config(value: Any) -> bool:
    return any(
        kind.__name__ in ("PreTrainedConfig", "PretrainedConfig") and kind.__module__.startswith("transformers.")
        for kind in type(value).__mro__
    )


def _is_configured(module: nn.Module) -> bool:
    own = any(kind.__name__ == "PreTrainedModel" for kind in type(module).__mro__)
    return own and _is_config(getattr(module, "config", None))


def _built(model: nn.Module, removed: Sequence[RemovedBlock]) -> Attributes | None:
    kind: Any = type(model)
    config: Any = copy.deepcopy(model.config)

    def build(configuration: Any) -> nn.Module | None:
        try:
            with torch.device("meta"):
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
    for name, module in list(shortened.named_modules()):
        if _is_empty(module):  # whether dropout is there may depend on a layer's number
            parent, _, leaf = name.rpartition(".")
            setattr(smaller.get_submodule(parent), leaf, module)
    return _without_floats(attribute_differences(shortened, smaller))


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
        for change in (_shorter, _renumbered, _both, None):
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
