"""Restoring a pruned network from the differences to a freshly built one."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from prunecli.errors import ModelError
from prunecli.surgery.removal.derived import refer_to_new, refresh
from prunecli.surgery.removal.settings import SAME, applied, difference, settings

Attributes = dict[str, dict[str, JsonValue]]


def attribute_differences(fresh: nn.Module, changed: nn.Module) -> Attributes:
    """Settings of `changed` that differ from those of `fresh`, by module and attribute name.

    Settings are plain values (numbers, texts), alone or in sequences, mappings and objects.

    Raises:
        ModelError: The two do not have the same modules.
    """
    originals = dict(fresh.named_modules())
    differences: Attributes = {}
    seen: set[tuple[int, int]] = set()
    for name, module in changed.named_modules():
        if name not in originals:
            raise ModelError(f"module {name!r} does not exist in the architecture that the checkpoint is rebuilt from")
        if type_before_parametrizations(module) is not type_before_parametrizations(originals[name]):
            raise ModelError(
                f"module {name!r} is a {type(module).__name__}, which is not the type that the architecture builds"
            )
        before, after = settings(originals[name]), settings(module)
        found = {key: difference(before[key], value, seen) for key, value in after.items() if key in before}
        differing = {key: value for key, value in found.items() if value is not SAME}
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
        known = settings(modules[name])
        for key, value in values.items():
            if key not in known:
                raise ModelError(f"the manifest sets {name}.{key}, which the architecture does not have")
            try:
                changed = applied(known[key], value, f"{name}.{key}")
            except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
                raise ModelError(f"the manifest sets {name}.{key} to a value that it cannot have") from error
            object.__setattr__(modules[name], key, changed)


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
    replaced: dict[int, tuple[Tensor, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        if leaf in module._parameters:
            trainable = name not in frozen and (tensor.is_floating_point() or tensor.is_complex())
            module._parameters[leaf] = parameters.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=trainable))
        else:
            module._buffers[leaf] = tensor
        replaced[id(old)] = (old, getattr(module, leaf))
    refer_to_new(model, replaced)
    for module in model.modules():
        refresh(module)
