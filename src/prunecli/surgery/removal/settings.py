"""What of a module's attributes a manifest records: plain values, alone or in sequences, mappings and objects."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from prunecli.checkpoint.manifest import as_json
from prunecli.errors import ModelError
from prunecli.surgery.removal.entries import is_record, plain, with_item

SAME = object()
"""What `difference` returns for equal settings."""
_PRIVATE = ("_step_mode",)
"""Attributes that belong to a network although their names begin with an underscore: whether it runs step by step."""
_NO_SETTINGS = ("v_seq", "yaml")
"""What spiking neurons have recorded, and the description that networks of ultralytics were built of."""
_OF_TORCH = frozenset(vars(nn.Module()))
_NESTED = 6
"""Objects in objects that are compared."""


def settings(module: nn.Module) -> dict[str, Any]:
    """Attributes that may be settings, by name; of private ones only integers, and what holds integers.

    Those that its class defines belong to them: an instance may hide them behind a value of its own.
    """
    own = {name: value for name, value in vars(module).items() if _is_setting(name, value)}
    return {**of_class(module), **own}


def of_class(module: nn.Module) -> dict[str, Any]:
    """Integers, and sequences and mappings of them, that a module's class defines outside of libraries."""
    kinds = [kind for kind in reversed(type(module).__mro__) if kind.__module__.partition(".")[0] not in _LIBRARIES]
    values = {name: value for kind in kinds for name, value in vars(kind).items() if name[:2] != "__"}
    return {
        name: value
        for name, value in values.items()
        if name not in vars(module) and isinstance(value, (int, list, tuple, dict)) and _holds_integers(value)
    }


_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "builtins")


def _is_setting(name: str, value: Any) -> bool:
    if name in _OF_TORCH or name in _NO_SETTINGS or name.startswith("_prunecli"):
        return False
    return not name.startswith("_") or name in _PRIVATE or _holds_integers(value)


def _holds_integers(value: Any) -> bool:
    known = plain(value)
    if isinstance(known, (list, tuple, Mapping)):
        items = list(known.values() if isinstance(known, Mapping) else known)
        return bool(items) and all(_holds_integers(item) for item in items)
    return is_record(known) or (isinstance(known, int) and not isinstance(known, bool))


def difference(before: Any, after: Any, seen: set[tuple[int, int]], depth: int = _NESTED) -> Any:
    """What has to be recorded so that `before` becomes `after`, as a JSON value; `SAME` if nothing.

    Of objects, and of sequences and mappings of them, only the entries that differ are recorded.

    Args:
        before: A setting of the freshly built network.
        after: The same setting of the changed network.
        seen: Pairs of objects that were compared already; several modules may share one.
        depth: How many levels of objects in objects are compared.
    """
    first, second = plain(before), plain(after)
    if before is after or (id(before), id(after)) in seen:
        return SAME
    if _is_plain(first) and _is_plain(second):
        return SAME if first == second else as_json(second)
    entries, others = dict(_entries(after)), dict(_entries(before))
    if (
        depth == 0
        or type(before) is not type(after)
        or (isinstance(after, (list, tuple)) and len(entries) != len(others))
    ):
        return SAME
    seen.add((id(before), id(after)))
    differing: dict[str, Any] = {}
    for key in entries:
        found = difference(others[key], entries[key], seen, depth - 1) if key in others else SAME
        if found is not SAME:
            differing[str(key)] = found
    return differing or SAME


def applied(original: Any, recorded: JsonValue, where: str) -> Any:
    """`original` with what `difference` recorded; only entries that exist are replaced, by values of their own type.

    Args:
        original: A setting of the freshly built network; objects are changed in place.
        recorded: The difference.
        where: Its name, for messages.

    Raises:
        ModelError: The record does not fit, so it belongs to another architecture.
    """
    known = plain(original)
    if _is_plain(known):
        if not _replaces(recorded, known):
            raise ModelError(f"the manifest sets {where} to a value of another type than the architecture has")
        return _shaped(original, recorded)
    names: dict[str, int | str] = {str(key): key for key, _ in _entries(original)}
    if not names or not isinstance(recorded, dict):
        raise ModelError(f"the manifest sets {where} to a value of another type than the architecture has")
    for name, item in recorded.items():
        if name not in names:
            raise ModelError(f"the manifest sets {where}.{name}, which the architecture does not have")
        current = dict(_entries(original))[names[name]]
        original = with_item(original, names[name], applied(current, item, f"{where}.{name}"))
    return original


def _entries(value: Any) -> Iterator[tuple[int | str, Any]]:
    """What an object, or a sequence or mapping with objects in it, consists of."""
    if isinstance(value, Mapping):
        yield from ((key, item) for key, item in value.items() if isinstance(key, (int, str)))
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif is_record(value):
        if hasattr(value, "__dict__"):
            yield from ((name, item) for name, item in vars(value).items() if not name.startswith("__"))
        else:
            yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _replaces(value: JsonValue, original: Any) -> bool:
    """Whether a recorded value has the type of the one it replaces; None may become a plain value, and vice versa."""
    if isinstance(value, list):
        if not isinstance(original, (list, tuple)):
            return False
        return all(any(_replaces(item, known) for known in original) or not original for item in value)
    if isinstance(value, dict):
        return isinstance(original, dict) and all(
            key in original and _replaces(item, original[key]) for key, item in value.items()
        )
    if value is None or original is None:
        return original is None or isinstance(original, (bool, int, float, str))
    for kind in (bool, str):
        if isinstance(value, kind) or isinstance(original, kind):
            return isinstance(value, kind) and isinstance(original, kind)
    return isinstance(original, (int, float)) and isinstance(value, (int, float)) and math.isfinite(value)


def _shaped(original: Any, value: JsonValue) -> Any:
    """A recorded value in the type of the one it replaces."""
    if isinstance(original, Tensor):
        return torch.tensor(value, dtype=original.dtype)
    if isinstance(original, np.ndarray):
        return np.array(value, dtype=original.dtype)
    if isinstance(original, np.generic):
        return original.dtype.type(value)
    if isinstance(value, list):
        alike = len(value) == len(original)
        items = [_shaped(known, item) for known, item in zip(original, value, strict=True)] if alike else value
        if isinstance(original, list):
            return items
        if alike and hasattr(original, "_make"):
            return original._make(items)
        kind: Any = torch.Size if isinstance(original, torch.Size) else tuple
        return kind(items)
    if isinstance(value, dict):
        changed = copy.copy(original)
        changed.update({key: _shaped(original[key], item) for key, item in value.items()})
        return changed
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Size):
        return True
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):  # timm's feature_info is a list of them
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))
