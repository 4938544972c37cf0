"""Removing channels: the only place where a model's shapes change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.surgery.groups import ChannelGroup, Keep, Width, dropped_units


def remove(model: nn.Module, groups: Iterable[ChannelGroup], keep: Keep) -> None:
    """Keeps the units in `keep` and removes all others, in place.

    Tensors are sliced, module attributes that hold widths are updated, and query rows are rescaled where head
    dimensions are removed, so that attention keeps its temperature.

    Args:
        model: The model the groups were traced on, or a copy of it.
        groups: Groups from `trace`; those without an entry in `keep` lose nothing.
        keep: For each group name the unit indices to keep.

    Raises:
        ValueError: An entry of `keep` is empty, out of range or repeated.
    """
    chosen = [group for group in groups if group.name in keep]
    for group in chosen:
        _check_units(group, keep[group.name])
    counts = {group.name: len(keep[group.name]) for group in chosen}
    _rescale(model, chosen, counts)
    kept = kept_positions(model, chosen, keep)
    made: dict[int, nn.Parameter | Tensor] = {}
    for name, by_dim in kept.items():
        module_name, _, tensor_name = name.rpartition(".")
        _slice_tensor(model.get_submodule(module_name), tensor_name, by_dim, made)
    widths = dict.fromkeys(width for group in chosen for width in group.widths)
    old = {group.name: group.units for group in chosen}
    for width in widths:
        _set_width(model.get_submodule(width.module), width, old, counts)
    for module_name in dict.fromkeys(name.rpartition(".")[0] for name in kept):
        _sync_width(model.get_submodule(module_name))


def kept_positions(model: nn.Module, groups: Iterable[ChannelGroup], keep: Keep) -> dict[str, dict[int, Tensor]]:
    """The positions that `remove` leaves in every tensor it shortens.

    Args:
        model: The model before the removal.
        groups: The groups of its trace; those without an entry in `keep` lose nothing.
        keep: Kept units by group name.

    Returns:
        For each tensor name and dimension that loses positions, the kept ones, sorted, dtype int64.
    """
    masks: dict[tuple[str, int], Tensor] = {}
    for group in groups:
        if group.name not in keep or len(keep[group.name]) == group.units:
            continue
        dropped = dropped_units(group, keep[group.name])
        for member in group.members:
            size = getattr(model.get_submodule(member.module), member.tensor).shape[member.dim]
            mask = masks.setdefault((member.name, member.dim), torch.ones(size, dtype=torch.bool))
            mask[member.index[dropped].flatten()] = False
    kept: dict[str, dict[int, Tensor]] = {}
    for (name, dim), mask in masks.items():
        kept.setdefault(name, {})[dim] = mask.nonzero().flatten()
    return kept


def _check_units(group: ChannelGroup, units: Tensor) -> None:
    if units.numel() == 0:
        raise ValueError(f"{group.name}: every channel would be removed")
    if int(units.min()) < 0 or int(units.max()) >= group.units or torch.unique(units).numel() != units.numel():
        raise ValueError(f"{group.name}: kept units must be distinct and lie in 0..{group.units - 1}")


def _rescale(model: nn.Module, groups: Sequence[ChannelGroup], counts: dict[str, int]) -> None:
    for group in groups:
        ratio = (counts[group.name] / group.units) ** 0.5
        for scale in group.scales if ratio != 1 else ():
            tensor = getattr(model.get_submodule(scale.module), scale.tensor)
            with torch.no_grad():
                rows = tensor.detach().movedim(scale.dim, 0)
                rows[scale.positions.to(rows.device)] *= ratio


def _slice_tensor(
    module: nn.Module, name: str, kept: dict[int, Tensor], made: dict[int, nn.Parameter | Tensor]
) -> None:
    old = getattr(module, name)
    new: Any = made.get(id(old))
    if new is None:
        sliced = old.detach()
        for dim, positions in kept.items():
            sliced = sliced.index_select(dim, positions.to(sliced.device))
        new = (
            nn.Parameter(sliced.clone(), requires_grad=old.requires_grad)
            if isinstance(old, nn.Parameter)
            else sliced.clone()
        )
        made[id(old)] = new  # a tensor used in two modules stays tied
    if isinstance(old, nn.Parameter):
        module._parameters[name] = new
    else:
        module._buffers[name] = new


def _set_width(module: nn.Module, width: Width, old: dict[str, int], counts: dict[str, int]) -> None:
    new = width.size.value(counts)
    value: Any = getattr(module, width.attribute)
    if width.root:
        changed: Any = value * (width.size.value(old) / new) ** 0.5
    else:
        changed = _replaced(value, width.path, new)
    object.__setattr__(module, width.attribute, changed)


def _replaced(value: Any, path: tuple[int | str, ...], new: int) -> Any:
    """A copy of a nested sequence or mapping with one entry replaced."""
    if not path:
        return new
    if isinstance(value, dict):
        return {**value, path[0]: _replaced(value[path[0]], path[1:], new)}
    items = list(value)
    index = path[0]
    assert isinstance(index, int)
    items[index] = _replaced(items[index], path[1:], new)
    return items if isinstance(value, list) else tuple(items)


def _sync_width(module: nn.Module) -> None:
    """Makes the width attributes of a sliced module agree with its tensors."""
    if isinstance(module, _ConvNd):
        rows, columns = module.weight.shape[:2]
        if isinstance(module, _ConvTransposeNd):
            module.in_channels, module.out_channels = rows, columns * module.groups
        else:
            module.in_channels, module.out_channels = columns * module.groups, rows
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        statistic = module.weight if module.weight is not None else module.running_mean
        assert statistic is not None
        module.num_features = statistic.shape[0]
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = module.weight.shape[0]
    elif isinstance(getattr(module, "normalized_shape", None), tuple) and isinstance(module.weight, Tensor):
        object.__setattr__(module, "normalized_shape", tuple(module.weight.shape))  # layer normalisation and its kin
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
