"""Entries of attributes: numbers in sequences, mappings, objects and small tensors, by the path that leads to them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping, MutableSequence
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Path = tuple[int | str, ...]
_MOST = 64
"""Arrays with more numbers than this are data, not settings."""


def entry(value: Any, path: Path) -> Any:
    """The entry of `value` at `path`; integers of numpy and small tensors of integers as plain numbers.

    Raises:
        LookupError: There is no such entry.
        AttributeError: An object on the way has no such attribute.
    """
    for key in path:
        value = _child(value, key)
    return plain(value)


def with_entry(value: Any, path: Path, new: float) -> Any:
    """`value` with the number `new` at `path`, in the type of the number that was there.

    Raises:
        LookupError: There is no such entry.
        AttributeError: An object on the way has no such attribute.
        TypeError: Something on the way does not belong to this network alone.
    """
    if not path:
        return _alike(value, new)
    if isinstance(value, (Tensor, np.ndarray)):
        return with_item(value, path[0], new)
    return with_item(value, path[0], with_entry(_child(value, path[0]), path[1:], new))


def with_item(value: Any, key: int | str, item: Any) -> Any:
    """`value` with `item` as its element, value or attribute `key`.

    What can change is changed in place, so that all who refer to it see it; tuples and frozen dataclasses are
    rebuilt.

    Raises:
        TypeError: It is neither a sequence nor a mapping nor an object of the network's own.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        with torch.no_grad():
            value[int(key)] = item
        return value
    if isinstance(value, MutableMapping):
        value[key] = item
        return value
    if isinstance(value, MutableSequence):
        value[int(key)] = item
        return value
    if isinstance(value, tuple):
        items = [*value[: int(key)], item, *value[int(key) + 1 :]]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if not is_record(value):
        raise TypeError(f"an entry of a {type(value).__name__} cannot be set")
    return _with_attribute(value, str(key), item)


def own(value: Any, name: str) -> Any:
    """An attribute that may be changed in place: a copy if it belongs to the class, which all networks share."""
    found = getattr(value, name)
    return found if name in getattr(value, "__dict__", {}) else copy.deepcopy(found)


def plain(value: Any) -> Any:
    """Numbers of numpy, and a few integers in a tensor or an array, as plain numbers or lists; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        counts = not value.is_meta and value.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        return value.tolist() if counts and value.dim() <= 1 and value.numel() <= _MOST else value
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "iu" and value.ndim <= 1 and value.size <= _MOST else value
    return value


def is_record(value: Any) -> bool:
    """Whether a value is an object that holds settings of one network: a namespace, a dataclass, a configuration.

    Classes, modules and members of an enumeration are shared by everything in the process, copies included.
    """
    if isinstance(value, (type, ModuleType, Enum, nn.Module, Tensor, np.ndarray, Mapping, MutableSequence, tuple)):
        return False
    if hasattr(type(value), "__deepcopy__") and copy.deepcopy(value) is value:
        return False  # copies of a network share it
    return not callable(value) and (hasattr(value, "__dict__") or dataclasses.is_dataclass(value))


def _child(value: Any, key: int | str) -> Any:
    return own(value, str(key)) if is_record(value) else value[key]


def _with_attribute(value: Any, name: str, item: Any) -> Any:
    try:
        setattr(value, name, item)
    except dataclasses.FrozenInstanceError:
        if item is getattr(value, name):
            return value
        try:
            return dataclasses.replace(value, **{name: item})
        except (
            TypeError,
            ValueError,
        ):  # a field that is no argument, or a `__post_init__` check that the other fields no longer pass
            duplicate = copy.copy(value)
            object.__setattr__(duplicate, name, item)
            return duplicate
    return value


def _alike(old: Any, new: float) -> Any:
    if isinstance(old, Tensor):
        with torch.no_grad():
            return old.fill_(new)  # in place: it may be a buffer
    if isinstance(old, np.generic):
        return old.dtype.type(new)
    return float(new) if isinstance(old, float) else new
