"""Restoring a pruned network from the differences to a freshly built one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from prunecli.checkpoint.manifest import as_json
from prunecli.errors import ModelError

Attributes = dict[str, dict[str, JsonValue]]
_PRIVATE = ("_step_mode",)
"""Attributes that belong to a network although their names begin with an underscore: whether it runs step by step."""


def attribute_differences(fresh: nn.Module, changed: nn.Module) -> Attributes:
    """Plain attributes (numbers, texts, tuples of them) of `changed` that differ from `fresh`, by module name.

    Raises:
        ModelError: The two do not have the same modules.
    """
    originals = dict(fresh.named_modules())
    differences: Attributes = {}
    for name, module in changed.named_modules():
        if name not in originals:
            raise ModelError(f"module {name!r} does not exist in the architecture that the checkpoint is rebuilt from")
        if type(module) is not type(originals[name]):
            raise ModelError(
                f"module {name!r} is a {type(module).__name__}, which is not the type that the architecture builds"
            )
        before, after = _plain_attributes(originals[name]), _plain_attributes(module)
        differing = {key: as_json(value) for key, value in after.items() if key in before and before[key] != value}
        if differing:
            differences[name] = differing
    return differences


def apply_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, JsonValue]]) -> None:
    """Sets recorded attributes on a freshly built model.

    Raises:
        ModelError: A module or attribute does not exist, so the manifest belongs to another architecture.
    """
    modules = dict(model.named_modules())
    for name, values in attributes.items():
        if name not in modules:
            raise ModelError(f"the manifest changes module {name!r}, which the architecture does not have")
        plain = _plain_attributes(modules[name])
        for key, value in values.items():
            if key not in plain:
                raise ModelError(f"the manifest sets {name}.{key}, which the architecture does not have")
            if not _replaces(value, plain[key]):
                raise ModelError(f"the manifest sets {name}.{key} to a value of another type than the architecture has")
            sequence = list if isinstance(plain[key], list) else tuple
            object.__setattr__(modules[name], key, sequence(value) if isinstance(value, list) else value)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, non-persistent buffers and tied names included."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named.items()}


def assign_tensors(model: nn.Module, tensors: Mapping[str, Tensor], frozen: frozenset[str] = frozenset()) -> None:
    """Puts `tensors` in place of the model's own, whatever their shapes were; the model may be on the meta device.

    Args:
        model: A model with the right modules.
        tensors: A tensor for every name of `state_tensors(model)`. Names with one tensor object become tied.
        frozen: Parameter names that must not require gradients.

    Raises:
        ModelError: A tensor is missing or left over.
    """
    expected = state_tensors(model)
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or surplus:
        kind, name = ("lacks", missing[0]) if missing else ("has an unexpected", surplus[0])
        raise ModelError(f"the checkpoint {kind} tensor {name!r}: it belongs to another architecture")
    parameters: dict[int, nn.Parameter] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf in module._parameters:
            trainable = name not in frozen and (tensor.is_floating_point() or tensor.is_complex())
            module._parameters[leaf] = parameters.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=trainable))
        else:
            module._buffers[leaf] = tensor


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


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if (not key.startswith("_") or key in _PRIVATE) and key not in ("training", "v_seq") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, torch.Size):
        return True
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):  # timm's feature_info is a list of them
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))
