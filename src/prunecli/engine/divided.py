"""Tensors and networks that are divided among processes (DTensors), without importing what divides them."""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from prunecli import ranks

_SHARDED: WeakSet[nn.Module] = WeakSet()


def is_sharded(network: nn.Module) -> bool:
    """Whether a network is divided among processes, so that all of them have to run it equally often."""
    return network in _SHARDED


def sharded_now(network: nn.Module, is_so: bool = True) -> None:
    """Notes that a network is divided, or is not any more."""
    (_SHARDED.add if is_so else _SHARDED.discard)(network)


def placed(value: Any, like: Any) -> Any:
    """A whole tensor divided as another one is; anything else, and everything where that is whole, as it is."""
    if not is_divided(like) or not isinstance(value, Tensor) or is_divided(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    here = value.detach().to(like.device)
    return distribute_tensor(here, mesh, placements, src_data_rank=None)  # every process has the whole one


def placed_by_name(values: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The same of tensors by name, such as weights."""
    return {name: placed(value, like[name]) for name, value in values.items()}


def placed_states(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer, divided as the parameters of another one are."""
    parameters = list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))
    states = {
        number: {name: placed(value, parameters[number]) for name, value in state.items()}
        for number, state in saved["state"].items()
    }
    return saved | {"state": states}


def is_divided(tensor: object) -> bool:
    """Whether a tensor is a DTensor, of which each process has a part."""
    if type(tensor) in (Tensor, nn.Parameter):  # before DTensor is imported, which takes a second
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def in_full(tensor: Tensor) -> Tensor:
    """A whole tensor on the CPU; on other ranks than the first, which alone needs it, an empty one."""
    whole: Tensor = tensor.full_tensor() if is_divided(tensor) else tensor  # type: ignore[attr-defined]
    return whole.detach().cpu() if ranks.writes() else torch.empty(0)
