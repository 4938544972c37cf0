"""Removing channels: the only place where a model's shapes change."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.surgery.groups import ChannelGroup, Keep, dropped_units


def remove(model: nn.Module, groups: Iterable[ChannelGroup], keep: Keep) -> None:
    """Keeps the units in `keep` and removes all others, in place.

    Args:
        model: The model the groups were traced on, or a copy of it.
        groups: Groups from `trace`; those without an entry in `keep` stay whole.
        keep: For each group name the unit indices to keep.

    Raises:
        ValueError: An entry of `keep` is empty, out of range or repeated.
    """
    kept_positions: dict[tuple[str, str], dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        units = keep[group.name]
        _check_units(group, units)
        dropped = dropped_units(group, units)
        for member in group.members:
            size = getattr(model.get_submodule(member.module), member.tensor).shape[member.dim]
            masks = kept_positions.setdefault((member.module, member.tensor), {})
            mask = masks.setdefault(member.dim, torch.ones(size, dtype=torch.bool))
            mask[member.index[dropped].flatten()] = False
    for (module_name, tensor_name), masks in kept_positions.items():
        _slice_tensor(model.get_submodule(module_name), tensor_name, masks)
    for module_name in dict.fromkeys(name for name, _ in kept_positions):
        _sync_width(model.get_submodule(module_name))


def _check_units(group: ChannelGroup, units: Tensor) -> None:
    if units.numel() == 0:
        raise ValueError(f"{group.name}: every channel would be removed")
    if int(units.min()) < 0 or int(units.max()) >= group.units or torch.unique(units).numel() != units.numel():
        raise ValueError(f"{group.name}: kept units must be distinct and lie in 0..{group.units - 1}")


def _slice_tensor(module: nn.Module, name: str, masks: dict[int, Tensor]) -> None:
    old = getattr(module, name)
    new = old.detach()
    for dim, mask in masks.items():
        new = new.index_select(dim, mask.nonzero().flatten().to(new.device))
    if isinstance(old, nn.Parameter):
        module._parameters[name] = nn.Parameter(new.clone(), requires_grad=old.requires_grad)
    else:
        module._buffers[name] = new.clone()


def _sync_width(module: nn.Module) -> None:
    """Makes the width attributes of a sliced module agree with its tensors."""
    if isinstance(module, _ConvNd):
        depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        rows, columns = module.weight.shape[:2]
        if isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = rows, columns * module.groups
        elif depthwise:
            module.groups = module.in_channels = module.out_channels = rows
        else:
            module.in_channels, module.out_channels = columns * module.groups, rows
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        statistic = module.weight if module.weight is not None else module.running_mean
        assert statistic is not None
        module.num_features = statistic.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
