"""Following a removal: which positions of every tensor stay, and what the groups are called afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunecli.surgery.groups import ChannelGroup, Keep, dropped_units

Kept = dict[str, dict[int, Tensor]]
"""For each tensor name and dimension that loses positions, those that stay, sorted, dtype int64."""


def kept_positions(model: nn.Module, groups: Iterable[ChannelGroup], keep: Keep) -> Kept:
    """The positions that `remove` leaves in every tensor it shortens.

    Args:
        model: The model before the removal.
        groups: The groups of its trace; those without an entry in `keep` stay whole.
        keep: Kept units by group name.
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
    kept: Kept = {}
    for (name, dim), mask in masks.items():
        kept.setdefault(name, {})[dim] = mask.nonzero().flatten()
    return kept


def renumbered(model: nn.Module, groups: Sequence[ChannelGroup], keep: Keep) -> list[ChannelGroup]:
    """The groups of the model after `remove`, with the same names, so that it need not be traced again.

    Args:
        model: The model before the removal.
        groups: Its groups.
        keep: What was kept.
    """
    places: dict[tuple[str, int], Tensor] = {}
    for name, dims in kept_positions(model, groups, keep).items():
        path, _, leaf = name.rpartition(".")
        tensor = getattr(model.get_submodule(path), leaf)
        for dim, positions in dims.items():
            place = torch.full((tensor.shape[dim],), -1)
            place[positions] = torch.arange(len(positions))
            places[name, dim] = place
    found = []
    for group in groups:
        units = keep.get(group.name, torch.arange(group.units))
        members = tuple(
            replace(
                member,
                index=places[member.name, member.dim][member.index[units]]
                if (member.name, member.dim) in places
                else member.index[units],
            )
            for member in group.members
        )
        found.append(replace(group, units=len(units), channels=len(units) * group.channels_per_unit, members=members))
    return found
