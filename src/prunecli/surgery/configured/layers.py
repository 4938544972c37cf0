"""Configurations of transformers with fewer layers: their number, their kinds, and where their caches are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from prunecli.checkpoint.manifest import RemovedBlock
from prunecli.copying import copied
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.configured.rebuilt import (
    Rebuilt,
    built,
    differences,
    entries,
    holder,
    is_list,
    owner,
    set_entry,
    structure,
)

_BY_LAYER = ("layer", "block", "attention", "attn", "types", "pattern")
"""Parts of the names of lists in a configuration that may have an entry for every layer, or numbers of layers."""
_ABOUT_DEPTH = ("layer", "depth", "block")
"""Parts of the names of configuration entries that are tried first."""


def rebuilt_with_fewer_layers(model: nn.Module, removed: Sequence[RemovedBlock]) -> Rebuilt | None:
    """A model without some of its layers as transformers builds it.

    Args:
        model: The network with the layers; not changed.
        removed: As for `take_out`.

    Returns:
        None if the network is none of transformers, or no configuration gives the modules that are left.
    """
    name = owner(model, [block.name for block in removed])
    if name is None:
        return None
    prefix, own = f"{name}." if name else "", model.get_submodule(name)
    config: Any = copy.deepcopy(own.config)
    full = built(own, config)
    if full is None or structure(full) != structure(own):
        return None
    shortened, smaller = copied(full), full
    by_list: dict[str, list[RemovedBlock]] = {}
    for block in removed:
        inner = block.name.removeprefix(prefix)
        by_list.setdefault(inner.rpartition(".")[0], []).append(RemovedBlock(name=inner, left=block.left))
    for parent, blocks in by_list.items():
        length = len(list(shortened.get_submodule(parent).children()))
        indices = frozenset(int(leaf) for block in blocks if (leaf := block.name.rpartition(".")[2]).isdigit())
        take_out(shortened, blocks)
        found = _shortened(own, config, length, indices, structure(shortened)) if len(indices) == len(blocks) else None
        if found is None:
            return None
        config, smaller = found
    return Rebuilt(name, smaller, differences(shortened, smaller, prefix))


def _shortened(
    model: nn.Module, config: Any, length: int, removed: frozenset[int], wanted: dict[str, type | None]
) -> tuple[Any, nn.Module] | None:
    """The first changed configuration that gives the wanted modules, and its model."""
    for changed in _changed(config, length, removed):
        smaller = built(model, changed)
        if smaller is not None and structure(smaller) == wanted:
            return changed, smaller
    return None


def _changed(config: Any, length: int, removed: frozenset[int]) -> Iterator[Any]:
    """Configurations that may be those of a network in which a list of that length has lost entries."""
    numbers = list(entries(config, lambda value: type(value) is int and value == length))
    for entry in sorted(numbers, key=lambda entry: not any(part in entry.name for part in _ABOUT_DEPTH)):
        tried: list[dict[str, Any]] = []
        for change in (_both, _shorter, _renumbered, None):
            changed = copy.deepcopy(config)
            within = holder(changed, entry)
            lists = {name: value for name, value in vars(within).items() if is_list(value) and name != entry.name}
            lists = {name: value for name, value in lists.items() if any(part in name for part in _BY_LAYER)}
            news = {name: change(value, length, removed) if change else value for name, value in lists.items()}
            if news in tried:
                continue
            tried.append(news)
            for name, values in news.items():
                object.__setattr__(within, name, type(lists[name])(values))
            set_entry(within, entry, length - len(removed))
            yield changed


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
