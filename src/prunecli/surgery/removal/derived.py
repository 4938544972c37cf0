"""Tensors and references that a module derives from its parameters, brought up to date when those are replaced.

Older reparametrisations (`torch.nn.utils.weight_norm`, `spectral_norm`, `prune`) compute a plain tensor attribute in a
hook before each pass; between passes it would keep the shape and values of the parameters that are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_NESTED = 4
"""Containers in containers that are searched for references."""


def refresh(module: nn.Module) -> None:
    """Recomputes what the hooks of `module` derive from its parameters, and its own list of weights if it keeps one."""
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                setattr(module, hook.name, hook.compute_weight(module))
            elif isinstance(hook, SpectralNorm):
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
            elif isinstance(hook, BasePruningMethod):
                apply: Any = hook.apply_mask
                setattr(module, hook._tensor_name, apply(module))
    if isinstance(module, nn.RNNBase):
        names = [name for layer in module._all_weights for name in layer]
        module._flat_weights = [getattr(module, name, None) for name in names]
        module._init_flat_weights()


def refer_to_new(model: nn.Module, replaced: Mapping[int, tuple[Any, Any]]) -> None:
    """Lets plain attributes that refer to a replaced tensor, alone or in a container, refer to the new one.

    Args:
        model: The model with the new tensors.
        replaced: Old and new tensor by the old one's id.
    """
    if not replaced:
        return
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                changed = _referring(value, replaced, _NESTED)
                if changed is not value:
                    object.__setattr__(module, name, changed)


def _referring(value: Any, replaced: Mapping[int, tuple[Any, Any]], depth: int) -> Any:
    if isinstance(value, Tensor):
        return replaced[id(value)][1] if id(value) in replaced else value
    if depth == 0 or type(value) not in (list, tuple, dict):
        return value
    if isinstance(value, dict):
        value.update({key: _referring(item, replaced, depth - 1) for key, item in value.items()})
        return value
    items = [_referring(item, replaced, depth - 1) for item in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if isinstance(value, tuple):
        return tuple(items)
    value[:] = items
    return value
