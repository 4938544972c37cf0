"""Channels that masks have killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunecli.surgery.groups import ChannelGroup, Member


def alive_units(model: nn.Module, groups: Sequence[ChannelGroup], spikes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Units of each group that something still reads and that can still spike, at least one, where others do not.

    Args:
        model: The network, masked weights at zero.
        groups: Its groups.
        spikes: Masks of neurons by layer of neurons, without steps and samples.
    """
    alive = {}
    for group in groups:
        read = _read(model, group)
        fires = _fires(group, spikes)
        units = (read & fires).nonzero().flatten()
        if len(units) == 0:
            units = torch.zeros(1, dtype=torch.int64)
        if len(units) < group.units:
            alive[group.name] = units
    return alive


def _read(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Units with a weight that is not zero in some layer that reads them."""
    readers = [member for member in group.members if member.role == "consumer"]
    if not readers:
        return torch.ones(group.units, dtype=torch.bool)
    return torch.stack([_columns(model, member) for member in readers]).any(dim=0)


def _columns(model: nn.Module, member: Member) -> Tensor:
    tensor = getattr(model.get_submodule(member.module), member.tensor).detach()
    used = (
        (tensor != 0).any(dim=[dim for dim in range(tensor.dim()) if dim != member.dim])
        if tensor.dim() > 1
        else tensor != 0
    )
    return used.cpu()[member.index].any(dim=1)  # type: ignore[no-any-return]


def _fires(group: ChannelGroup, spikes: Mapping[str, Tensor]) -> Tensor:
    """Units with a neuron that is not masked everywhere; neurons without a mask always count."""
    fires = []
    for emission in group.emissions:
        mask = spikes.get(emission.module)
        if mask is None:
            return torch.ones(group.units, dtype=torch.bool)
        by_channel = mask.cpu().reshape(len(mask), -1).any(dim=1)
        if emission.index.max() >= len(by_channel):  # channels on another dimension
            return torch.ones(group.units, dtype=torch.bool)
        fires.append(by_channel[emission.index].any(dim=1))
    return torch.stack(fires).any(dim=0) if fires else torch.ones(group.units, dtype=torch.bool)
