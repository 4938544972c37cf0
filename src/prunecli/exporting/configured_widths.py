"""Pruned networks of transformers as the library builds them from a configuration, where one has their widths."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from prunecli.inputs import Inputs, call, output_tensors
from prunecli.surgery.configured.rebuilt import Entry, built, entries, holder, owner, set_entry, structure

_MOST_TRIED = 200
_Shapes = dict[str, tuple[int, ...]]


def as_configured(network: nn.Module, example: Inputs) -> nn.Module | None:
    """The library's own network with the same weights, which computes the same to the last bit.

    Args:
        network: A pruned or dense network.
        example: Inputs to compare the two on.

    Returns:
        None if the network is none of transformers, or no configuration gives its widths.
    """
    if owner(network, []) != "":
        return None
    wanted: Any = network
    config = _found(network, copy.deepcopy(wanted.config))
    own = built(network, config) if config is not None else None
    if own is None or structure(own) != structure(network):
        return None
    own.load_state_dict(network.state_dict(), assign=True)
    made: Any = own.eval()
    if hasattr(made, "tie_weights"):
        made.tie_weights()
    if getattr(wanted, "generation_config", None) is not None:
        made.generation_config = wanted.generation_config
    return made if _same(network, made, example) else None


def _found(network: nn.Module, config: Any) -> Any:
    """A configuration that gives the shapes of a network; None if changing one number after the other finds none."""
    wanted = _shapes(network)
    tried = 0
    model = built(network, config)
    while model is not None:
        apart = _apart(model, wanted)
        if not apart:
            return config
        best = None
        for entry, after in _candidates(model, network, config, apart, wanted):
            tried += 1
            changed = copy.deepcopy(config)
            set_entry(holder(changed, entry), entry, after)
            other = built(network, changed)
            left = len(_apart(other, wanted)) if other is not None and _shapes(other).keys() == wanted.keys() else None
            if left is not None and left < len(apart) and (best is None or left < best[0]):
                best = (left, changed, other)
        if best is None or tried > _MOST_TRIED:
            return None
        _, config, model = best
    return None


def _shapes(model: nn.Module) -> _Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _apart(model: nn.Module, wanted: _Shapes) -> list[str]:
    shapes = _shapes(model)
    return [name for name, shape in wanted.items() if shapes.get(name) != shape]


def _candidates(
    model: nn.Module, network: nn.Module, config: Any, apart: list[str], wanted: _Shapes
) -> Iterator[tuple[Entry, int]]:
    """Numbers of a configuration that a tensor or an attribute has another one in place of."""
    shapes = _shapes(model)
    changes: dict[tuple[int, int], None] = {}
    for name in apart:
        pairs = zip(shapes.get(name, ()), wanted[name], strict=False)
        changes |= {(before, after): None for before, after in pairs if before != after}
    modules = dict(network.named_modules())
    for name, module in model.named_modules():
        for key, before in vars(module).items():
            after = vars(modules[name]).get(key) if name in modules else None
            if type(before) is int and type(after) is int and before != after:
                changes[before, after] = None
    for before, after in changes:
        for entry in entries(config, partial(_is, before)):
            yield entry, after


def _is(number: int, value: Any) -> bool:
    return type(value) is int and value == number


def _same(network: nn.Module, own: nn.Module, example: Inputs) -> bool:
    with torch.no_grad():
        try:
            pairs = zip(*(output_tensors(call(model, example)) for model in (network, own)), strict=True)
            return all(torch.equal(one, other) for one, other in pairs)
        except (RuntimeError, ValueError, TypeError, IndexError):  # whatever the library's code says of its widths
            return False
