"""Networks of files in half precision: which of their tensors are saved in that again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import is_large
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.widened import in_file_as, plain

_SINGLE = torch.float32.itemsize
_PRECISION = "_prunecli_precision"
"""Attribute of a network in memory: the narrower dtypes that tensors of its file have, by name. It survives a copy."""


def in_memory(model: nn.Module) -> nn.Module:
    """The network with all floating tensors in single precision; a large one as its file has it, until `widen`."""
    dtypes = {name: tensor.dtype for name, tensor in state_tensors(model).items() if tensor.is_floating_point()}
    note_precision(model, dtypes)
    return model if is_large(model) or set(dtypes.values()) <= {torch.float32} else model.float()


def note_precision(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Remembers which tensors of a network that runs in single precision are to be saved in a narrower one."""
    narrow = {name: dtype for name, dtype in dtypes.items() if dtype.is_floating_point and dtype.itemsize < _SINGLE}
    object.__setattr__(model, _PRECISION, narrow)


def rename_precision(model: nn.Module, former: Mapping[str, str]) -> None:
    """Lets a network whose modules are called otherwise remember which tensors are to be saved in a narrower dtype.

    Args:
        model: The network.
        former: From the names of its modules to those that they had.
    """
    narrow: Mapping[str, torch.dtype] = getattr(model, _PRECISION, {})
    by_module: dict[str, dict[str, torch.dtype]] = {}
    for name, dtype in narrow.items():
        module, _, leaf = name.rpartition(".")
        by_module.setdefault(module, {})[leaf] = dtype
    now = {
        f"{new}.{leaf}".lstrip("."): dtype
        for new, old in former.items()
        for leaf, dtype in by_module.get(old, {}).items()
    }
    if narrow:
        object.__setattr__(model, _PRECISION, now)


def is_narrow(model: nn.Module) -> bool:
    """Whether some of a network's tensors are saved in half precision, and so are rounded."""
    return bool(getattr(model, _PRECISION, {}))


def stored_as(model: nn.Module) -> dict[str, int]:
    """Of a network that is saved in half precision: how many of its parameters in each type."""
    narrow: Mapping[str, torch.dtype] = getattr(model, _PRECISION, {})
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters() if narrow else ():
        kind = str(narrow.get(name, parameter.dtype)).removeprefix("torch.")
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return counts


def in_precision(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a network, those from a file in half precision in that again; shared ones stay shared.

    A tensor that would overflow, as statistics that were measured again may, keeps the precision it has.
    """
    narrow: Mapping[str, torch.dtype] = getattr(model, _PRECISION, {})
    tensors = state_tensors(model)
    made: dict[tuple[Any, ...], Tensor] = {}
    for name, dtype in narrow.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.is_floating_point():
            view = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
            cast = in_file_as(tensor, dtype)
            if tensor.dtype == dtype:
                continue
            if tensor.numel() and bool((torch.isfinite(tensor) == torch.isfinite(plain(cast).float())).all()):
                made.setdefault(view, cast)
    for name, tensor in tensors.items():
        tensors[name] = made.get((tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())), tensor)
    return tensors
