"""What stands or falls together: channel groups, their members and the layers that stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Role = Literal["producer", "consumer", "carrier"]


@dataclass(frozen=True, eq=False)
class Member:
    """One tensor dimension that a group's channels occupy.

    Attributes:
        module: Dotted name of the owning module.
        tensor: Name of the parameter or buffer inside the module, for instance "weight".
        dim: The dimension that holds the channels.
        index: Positions along `dim` of each unit, shape (units, positions per unit).
        role: "producer" writes the channels (a filter), "consumer" reads them (an input column), "carrier" passes
            them on one by one (batch normalisation, layer scale, depthwise filters).
    """

    module: str
    tensor: str
    dim: int
    index: Tensor
    role: Role

    @property
    def name(self) -> str:
        """Full name of the tensor in the model's state dict."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """All (tensor, dimension, index) that stand or fall together.

    A *unit* is the smallest thing that can be removed: one channel, or one channel of every block where a grouped
    convolution ties them.

    Attributes:
        name: Name of the first layer that produces the channels.
        units: How many units there are.
        channels: Width in channels; `channels // units` channels make one unit.
        members: Everything the channels occupy.
    """

    name: str
    units: int
    channels: int
    members: tuple[Member, ...]

    @property
    def channels_per_unit(self) -> int:
        """Channels that one unit holds."""
        return self.channels // self.units

    def modules(self, *roles: Role) -> tuple[str, ...]:
        """Names of the member modules with one of `roles`, in order, each once."""
        return tuple(dict.fromkeys(member.module for member in self.members if member.role in roles))


@dataclass(frozen=True)
class Frozen:
    """A layer whose output width is left alone, and why."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Trace:
    """What `trace` found: groups that can shrink and layers that cannot."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...] = field(default=())

    def group(self, name: str) -> ChannelGroup:
        """Returns the group called `name`.

        Raises:
            KeyError: There is no such group.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


Keep = Mapping[str, Tensor]
"""For each group name the kept unit indices, sorted, dtype int64."""


def tie_units(channels: int, ties: Iterable[Tensor]) -> Tensor:
    """Joins channels that must be removed together.

    Args:
        channels: Number of channels before joining.
        ties: Label tensors of shape (channels,); channels with the same label in any of them are joined.

    Returns:
        The unit of every channel, shape (channels,), units numbered by their first channel.
    """
    unit = torch.arange(channels)
    dense_labels = [torch.unique(labels, return_inverse=True)[1] for labels in ties]
    changed = bool(dense_labels)
    while changed:
        before = unit
        for labels in dense_labels:
            lowest = torch.full((int(labels.max()) + 1,), channels).scatter_reduce(0, labels, unit, "amin")
            unit = torch.minimum(unit, lowest[labels])
            unit = torch.minimum(unit, unit[unit])  # follow a representative that has moved itself
        changed = not torch.equal(unit, before)
    numbered: Tensor = torch.unique(unit, return_inverse=True)[1]
    return numbered


def dropped_units(group: ChannelGroup, keep: Tensor) -> Tensor:
    """Returns the unit indices of `group` that are not in `keep`."""
    mask = torch.ones(group.units, dtype=torch.bool)
    mask[keep] = False
    return mask.nonzero().flatten()
