"""Removing experts: their weights, their rows in the router, and what counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import RemovedBlock
from prunecli.surgery.blocks.taking_out import former_names, take_out
from prunecli.surgery.experts.finding import ExpertLayer, listed_experts, stacked_tensors
from prunecli.surgery.groups import ChannelGroup, Keep, Member, Size, Width
from prunecli.surgery.removal.slice import remove

_COUNTED = "expert"
"""Part of the names of attributes that count experts."""
_NOT_COUNTED = ("per_tok", "top", "shared", "group")
"""Parts of the names of those that count something else."""
_ADDED = ("bias", "correction")
"""Parts of the names of tensors with one number for each expert that are added to logits or scores."""


class ExpertsRemoved(NamedTuple):
    """What was done to a network.

    Attributes:
        blocks: Modules that were taken out, for `take_out`.
        former: From the names of modules to those that they had before.
    """

    blocks: tuple[RemovedBlock, ...]
    former: Mapping[str, str]


def group_of(model: nn.Module, layer: ExpertLayer) -> ChannelGroup:
    """A layer's experts as a group of channels: all tensors with an entry for each of them, and attributes."""
    members = [
        Member(router, name, 0, _each(layer), "producer")
        for router in _around(layer)
        for name in stacked_tensors(model.get_submodule(router), layer.experts)
    ]
    for holder in () if layer.listed else layer.holders:
        names = stacked_tensors(model.get_submodule(holder), layer.experts)
        members += [Member(holder, name, 0, _each(layer), "consumer") for name in names]
    known = {member.name for member in members}
    members += [member for member in added(model, layer) if member.name not in known]
    widths = [
        Width(name, attribute, (), Size("group", number=layer.experts, group=layer.name))
        for name, module in model.named_modules()
        if _is_of(layer, name)
        for attribute, value in vars(module).items()
        if type(value) is int and value == layer.experts and _counts(attribute)
    ]
    return ChannelGroup(layer.name, layer.experts, layer.experts, tuple(members), widths=tuple(widths))


def added(model: nn.Module, layer: ExpertLayer) -> list[Member]:
    """Tensors with one number for each expert that a layer adds to logits or scores."""
    found = []
    for name, module in model.named_modules():
        if not _is_of(layer, name) or any(_inside(name, holder) for holder in layer.holders):
            continue
        for tensor_name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or tensor.numel() != layer.experts or not any(part in tensor_name for part in _ADDED):
                continue
            dim = next(dim for dim, size in enumerate(tensor.shape) if size == layer.experts)
            found.append(Member(name, tensor_name, dim, _each(layer), "carrier"))
    return found


def remove_experts(model: nn.Module, layers: Sequence[ExpertLayer], keep: Keep) -> ExpertsRemoved:
    """Removes experts, in place.

    Args:
        model: Changed in place.
        layers: Its mixtures of experts.
        keep: By the name of a layer, the experts that stay; a layer without an entry loses none.
    """
    before = dict(model.named_modules(remove_duplicate=False))
    chosen = [layer for layer in layers if layer.name in keep]
    remove(model, [group_of(model, layer) for layer in chosen], keep)
    blocks: list[RemovedBlock] = []
    for layer in chosen:
        for holder in layer.holders if layer.listed else ():
            blocks += _move_up(model, holder, keep[layer.name])
    take_out(model, blocks)
    return ExpertsRemoved(tuple(blocks), former_names(before, model))


def _move_up(model: nn.Module, holder: str, keep: Tensor) -> list[RemovedBlock]:
    """Gives kept modules the first names of their list, so that code may count on; returns the last ones."""
    container = model.get_submodule(holder)
    names = listed_experts(container)
    modules = [container._modules[name] for name in names]
    for name, index in zip(names, keep.tolist(), strict=False):
        container._modules[name] = modules[index]
    return [RemovedBlock(name=f"{holder}.{name}") for name in reversed(names[len(keep) :])]


def _around(layer: ExpertLayer) -> list[str]:
    """The router and the modules around it, up to the layer: some scale what they choose by numbers of their own."""
    parts = layer.router.split(".")
    above = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return [name for name in above if _inside(name, layer.name) and name != layer.name]


def _each(layer: ExpertLayer) -> Tensor:
    return torch.arange(layer.experts).unsqueeze(1)


def _inside(name: str, around: str) -> bool:
    return name == around or name.startswith(f"{around}.") or not around


def _is_of(layer: ExpertLayer, name: str) -> bool:
    """Whether a module belongs to a layer, and is no part of an expert."""
    if not _inside(name, layer.name):
        return False
    return not (layer.listed and any(name.startswith(f"{holder}.") for holder in layer.holders))


def _counts(attribute: str) -> bool:
    return _COUNTED in attribute and not any(part in attribute for part in _NOT_COUNTED)
