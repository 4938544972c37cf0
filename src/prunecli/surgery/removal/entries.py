"""Entries of attributes: numbers in sequences, mappings, objects and small tensors, by the path that leads to them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import MutableMapping, MutableSequence
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Path = tuple[int | str, ...]


def entry(value: Any, path: Path) -> Any:
    """The entry of `value` at `path`, as a plain number where it is an integer of numpy or a tensor of one.

    Raises:
        LookupError: There is no such entry.
        AttributeError: An object on the way has no such attribute.
    """
    for key in path:
        value = getattr(value, str(key)) if _is_object(value) else value[key]
    return plain(value)


def with_entry(value: Any, path: Path, new: Any) -> Any:
    """`value` with `new` at `path`, of the type that was there.

    Objects that can change are changed in place, so that all who refer to them see it; tuples and frozen dataclasses
    are made anew.

    Raises:
        TypeError: Something on the way cannot be changed without changing it for other networks too.
    """
    if not path:
        return _alike(value, new)
    key = path[0]
    if isinstance(value, (Tensor, np.ndarray)):
        with torch.no_grad():
            value[tuple(int(index) for index in path)] = new
        return value
    if isinstance(value, (MutableMapping, MutableSequence)):
        value[key] = with_entry(value[key], path[1:], new)  # type: ignore[index]
        return value
    if isinstance(value, tuple):
        items = list(value)
        items[int(key)] = with_entry(items[int(key)], path[1:], new)
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if not _is_object(value):
        raise TypeError(f"an entry of a {type(value).__name__} cannot be set")
    return _with_attribute(value, str(key), with_entry(own(value, str(key)), path[1:], new))


def own(value: Any, name: str) -> Any:
    """An attribute that may be changed in place: a copy if it belongs to the class, which all networks share."""
    found = getattr(value, name)
    return found if name in getattr(value, "__dict__", {}) else copy.deepcopy(found)


def plain(value: Any) -> Any:
    """Integers of numpy, and tensors and arrays of integers, as numbers or lists of them; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Tensor, np.ndarray)) and is_small(value):
        return value.tolist()
    return value


def is_small(value: Tensor | np.ndarray[Any, Any]) -> bool:
    """Whether an array or a tensor may hold settings: a few integers."""
    if isinstance(value, Tensor):
        integers = not value.is_meta and not value.is_floating_point() and not value.is_complex()
        return integers and value.dtype != torch.bool and value.dim() <= 1 and value.numel() <= 64
    return value.dtype.kind in "iu" and value.ndim <= 1 and value.size <= 64


def _is_object(value: Any) -> bool:
    return is_record(value) and not isinstance(value, (MutableMapping, MutableSequence, tuple))


def is_record(value: Any) -> bool:
    """Whether a value is an object that holds settings and belongs to one network: a namespace, a configuration.

    Classes, modules and members of an enumeration are shared by everything in the process, copies included.
    """
    if isinstance(value, (type, ModuleType, Enum, nn.Module, Tensor, np.ndarray)) or callable(value):
        return False
    return hasattr(value, "__dict__") or (hasattr(type(value), "__slots__") and dataclasses.is_dataclass(value))


def _with_attribute(value: Any, name: str, new: Any) -> Any:
    if new is getattr(value, name):
        return value
    try:
        setattr(value, name, new)
    except dataclasses.FrozenInstanceError:
        try:
            return dataclasses.replace(value, **{name: new})
        except (TypeError, ValueError):  # a field that is not an argument, or a check that other fields fail by now
            duplicate = copy.copy(value)
            object.__setattr__(duplicate, name, new)
            return duplicate
    return value


def _alike(old: Any, new: Any) -> Any:
    """`new` in the type of the number `old`."""
    if isinstance(old, Tensor):
        with torch.no_grad():
            return old.fill_(new)  # in place: it may be a buffer
    if isinstance(old, (np.generic, np.ndarray)):
        return np.asarray(new, dtype=old.dtype)[()] if isinstance(old, np.generic) else np.full_like(old, new)
    return float(new) if isinstance(old, float) else new
