"""Channel groups: what has to be removed together, and where it is stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunecli.surgery.axes import Axis

Role = Literal["producer", "consumer", "carrier"]
Kind = Literal["channel", "head_dim", "head"]


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


@dataclass(frozen=True)
class Size:
    """A width as a function of the number of units kept in each group.

    Attributes:
        kind: "number", "group", "sum", "product" or "quotient".
        number: The value, for a number.
        group: The group's name, for a group.
        parts: Summands, factors, or a width and what it is divided by.
    """

    kind: Literal["number", "group", "sum", "product", "quotient"]
    number: int = 0
    group: str = ""
    parts: tuple[Size, ...] = ()

    def value(self, units: Mapping[str, int]) -> int:
        """The width when `units` of each group are left."""
        if self.kind == "group":
            return units.get(self.group, self.number)
        if self.kind == "number":
            return self.number
        values = [part.value(units) for part in self.parts]
        if self.kind == "quotient":
            return values[0] // values[1]
        return sum(values) if self.kind == "sum" else math.prod(values)

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups it depends on."""
        own = frozenset((self.group,)) if self.kind == "group" else frozenset()
        return own.union(*(part.groups for part in self.parts))


@dataclass(frozen=True)
class Width:
    """A module attribute, or one entry of it, that holds a width.

    Attributes:
        module: Dotted name of the module.
        attribute: Name of the attribute; also that of a buffer of integers.
        path: What leads to the entry, empty for a plain number: indices of sequences, arrays and tensors, keys of
            mappings, attribute names of objects such as a namespace, a dataclass or a configuration. Objects that
            can change are changed in place, for all modules that share them.
        size: Its value.
        root: For a scale such as head_dim ** -0.5: the attribute is multiplied by (old / new) ** 0.5 instead of set.
    """

    module: str
    attribute: str
    path: tuple[int | str, ...]
    size: Size
    root: bool = False

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups it depends on."""
        return self.size.groups


@dataclass(frozen=True, eq=False)
class Scale:
    """Positions of a parameter that are multiplied by sqrt(new / old) when the group's units shrink from old to new.

    Attributes:
        group: The group of head dimensions.
        module: Dotted name of the layer that writes the queries.
        tensor: Its weight or bias.
        dim: Dimension that holds the rows.
        positions: Rows to multiply, indices before removal.
    """

    group: str
    module: str
    tensor: str
    dim: int
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Emission:
    """Where spiking neurons output a group's channels.

    Attributes:
        module: Dotted name of the neuron.
        dim: Dimension of its output that holds the channels.
        index: Positions along `dim` of each unit, shape (units, positions per unit).
    """

    module: str
    dim: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """All (tensor, dimension, index) that are kept or removed together.

    A *unit* is the smallest thing that can be removed: one channel, or one channel of every block where a grouped
    convolution ties them.

    Attributes:
        name: Name of the first layer that produces the channels.
        units: How many units there are.
        channels: Width in channels; `channels // units` channels make one unit.
        members: Everything the channels occupy.
        kind: "head_dim" for the same dimension of every attention head, "head" for whole heads, else "channel".
        widths: Module attributes that hold a width which depends on this group.
        scales: Parameters to rescale so that attention keeps its temperature.
        emissions: The spiking neurons that output these channels, in the order they run.
        multiple: Units that stay have to be a multiple of this, because a kernel takes no other widths.
        axis: The axis the group was made from; used only by the tracer and `verify`.
    """

    name: str
    units: int
    channels: int
    members: tuple[Member, ...]
    kind: Kind = "channel"
    widths: tuple[Width, ...] = ()
    scales: tuple[Scale, ...] = ()
    emissions: tuple[Emission, ...] = ()
    multiple: int = 1
    axis: Axis | None = None

    @property
    def channels_per_unit(self) -> int:
        """Channels that one unit holds."""
        return self.channels // self.units

    def modules(self, *roles: Role) -> tuple[str, ...]:
        """Names of the member modules with one of `roles`, in order, each once."""
        return tuple(dict.fromkeys(member.module for member in self.members if member.role in roles))


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
            unit = torch.minimum(unit, unit[unit])  # follow a representative that was joined to another
        changed = not torch.equal(unit, before)
    numbered: Tensor = torch.unique(unit, return_inverse=True)[1]
    return numbered


def dropped_units(group: ChannelGroup, keep: Tensor) -> Tensor:
    """Returns the unit indices of `group` that are not in `keep`."""
    mask = torch.ones(group.units, dtype=torch.bool)
    mask[keep] = False
    return mask.nonzero().flatten()
