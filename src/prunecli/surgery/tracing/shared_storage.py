"""Weights that are shared through views of one storage: no copy keeps them together, so they are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call
from prunecli.widened import Widened

_TABLES = ("_parameters", "_buffers", "_modules")
"""Attributes of a module in which its own tensors and modules are."""


def refuse_shared_storage(model: nn.Module, trial: nn.Module, inputs: Inputs) -> None:
    """Refuses parameters that overlap in memory with one another, with a buffer or with an attribute.

    A parameter under several names is one tensor and stays one. Two tensors that are views of one storage become two
    weights in every copy and checkpoint: the result would be right until it is trained or restored. An attribute that
    `forward` reassigns is harmless.

    Args:
        model: The network.
        trial: A copy of it on the CPU, in evaluation mode; not changed.
        inputs: Inputs that `trial` accepts.

    Raises:
        ModelError: There is such a pair; the message names both.
    """
    tensors = {
        name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if _is_dense(tensor)
    }
    parameters = {name for name, _ in model.named_parameters()}
    for first, second in _overlapping(tensors):
        if first in parameters or second in parameters:
            raise ModelError(
                f"{first} and {second} are views of one storage, which a pruned copy would separate; register one "
                "parameter under both names, or compute one from the other in forward"
            )
    views = list(_views(model, {name: tensor for name, tensor in tensors.items() if name in parameters}))
    if not views:
        return
    run = copied(trial)
    before = {name: _kept(run, name) for name, _ in views}
    try:
        with torch.no_grad():
            call(run, inputs)
    except Exception:  # following it says why it does not run
        return
    for name, parameter in views:
        if any(left is right for left in before[name] for right in _kept(run, name)):
            raise ModelError(
                f"{name} is a view of {parameter}, which a pruned copy would separate; compute it from {parameter} in "
                "forward"
            )


def _is_dense(tensor: Tensor) -> bool:
    if isinstance(tensor, Widened):  # it stands for a tensor that was looked at
        return False
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta and tensor.numel() > 0


def _overlapping(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs with an element in common."""
    by_storage: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    for names in by_storage.values():
        for first, second in combinations(names, 2):
            if _overlap(tensors[first], tensors[second]):
                yield first, second


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one storage share an element; side by side, as in recurrent layers, they do not."""
    (start, end), (other_start, other_end) = _span(one), _span(other)
    if start >= other_end or other_start >= end:
        return False
    return bool(torch.isin(_places(one), _places(other)).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and the first one behind it."""
    reach = 1 + sum((int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + reach) * tensor.element_size()


def _places(tensor: Tensor) -> Tensor:
    """The bytes in its storage at which a tensor's elements begin."""
    start, end = _span(tensor)
    size = tensor.element_size()
    return torch.arange(start, end, size).as_strided(tensor.shape, tensor.stride()).flatten()


def _views(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Attributes that are views of a parameter, and the parameter."""
    storages = {tensor.untyped_storage().data_ptr(): name for name, tensor in parameters.items()}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not isinstance(value, (Tensor, dict, list, tuple)) or attribute in _TABLES:
                continue
            for tensor in _tensors(value):
                if tensor.untyped_storage().data_ptr() in storages:
                    yield f"{path}.{attribute}".lstrip("."), storages[tensor.untyped_storage().data_ptr()]
                    break


def _kept(model: nn.Module, name: str) -> list[Tensor]:
    """The tensors in an attribute, alone or in a sequence or mapping, that are no parameters themselves."""
    path, _, attribute = name.rpartition(".")
    return _tensors(vars(model.get_submodule(path)).get(attribute))


def _tensors(value: Any) -> list[Tensor]:
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    tensors = [item for item in items if isinstance(item, Tensor) and not isinstance(item, nn.Parameter)]
    return [tensor for tensor in tensors if _is_dense(tensor)]
