"""Lists of tensors without names, as torch_ema and diffusers save averages of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

_FEW = 2
_MAX_DEPTH = 3
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Tensors of normalisations that are no parameters."""


def nameless_lists(content: Any, no_network: tuple[str, ...]) -> dict[str, list[Tensor]]:
    """Lists that consist of tensors in nested dictionaries, by their keys joined by dots.

    Args:
        content: What a file holds.
        no_network: Beginnings of keys, in lower case, under which none is looked for.
    """
    return dict(_lists(content, no_network, "", 0))


def _lists(content: Any, no_network: tuple[str, ...], key: str, depth: int) -> Iterable[tuple[str, list[Tensor]]]:
    if isinstance(content, (list, tuple)):
        if len(content) >= _FEW and all(isinstance(item, Tensor) for item in content):
            yield key, [item.detach() for item in content]
    elif isinstance(content, Mapping) and depth < _MAX_DEPTH:
        for name, value in content.items():
            if not str(name).lower().startswith(no_network):
                yield from _lists(value, no_network, f"{key}.{name}" if key else str(name), depth + 1)


def with_names_of(tensors: list[Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """A state dict with these tensors in place of its parameters, which have to have the same shapes in the same order.

    Args:
        tensors: All parameters of a network, in its order.
        state: A state dict of the same network.

    Returns:
        None where they are not the parameters of that network.
    """
    names = [name for name in state if name.rpartition(".")[2] not in _STATISTICS]
    if [tensor.shape for tensor in tensors] != [state[name].shape for name in names]:
        return None
    return {**state, **dict(zip(names, tensors, strict=True))}
