"""What each channel of each group costs: parameters or multiply-accumulates as products of widths.

A weight has as many entries as the product of its dimensions, and each dimension is what it is without the groups that
lie along it, plus so much for each of their units. A layer multiplies every entry of its weight as often as it has
positions, whatever its widths. Products of two activations, such as attention's, are left out: this decides between
groups, and how much is removed in all is measured on the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunecli.inputs import Inputs
from prunecli.measure.counts import module_macs
from prunecli.surgery.groups import ChannelGroup


@dataclass
class _Dimension:
    """One dimension of a tensor: entries of no group, and entries for each unit of its groups."""

    fixed: int
    per_unit: dict[str, int]

    def size(self, units: Mapping[str, float]) -> float:
        return self.fixed + sum(each * units[name] for name, each in self.per_unit.items())


@dataclass
class _Term:
    """A tensor: its dimensions, and what each entry costs."""

    weight: float
    dimensions: list[_Dimension]


class LayerCosts:
    """Cost of a network's groups as a function of the units that they keep.

    Args:
        model: The network.
        groups: Its groups.
        kind: "channels", "params", or "macs".
        inputs: Inputs that it accepts.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], kind: str, inputs: Inputs) -> None:
        self._names = [group.name for group in groups]
        if kind == "channels":
            each = {group.name: group.channels_per_unit for group in groups}
            self._terms = [_Term(1.0, [_Dimension(0, each)])]
        else:
            self._terms = _terms(model, groups, module_macs(model, inputs) if kind == "macs" else None)

    def total(self, units: Mapping[str, float]) -> float:
        """The cost when so many units of each group are left, of the tensors in which any group lies."""
        return sum(
            term.weight * math.prod(dimension.size(units) for dimension in term.dimensions) for term in self._terms
        )

    def slopes(self, units: Mapping[str, float]) -> dict[str, float]:
        """What one more unit of each group costs where so many are left."""
        slopes = dict.fromkeys(self._names, 0.0)
        for term in self._terms:
            sizes = [dimension.size(units) for dimension in term.dimensions]
            for place, dimension in enumerate(term.dimensions):
                others = math.prod(size for other, size in enumerate(sizes) if other != place)
                for name, each in dimension.per_unit.items():
                    slopes[name] += term.weight * each * others
        return slopes


def _terms(model: nn.Module, groups: Sequence[ChannelGroup], macs: Mapping[str, int] | None) -> list[_Term]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_tensor: dict[int, _Term] = {}
    for group in groups:
        for member in group.members:
            tensor = parameters.get(member.name)
            if tensor is None:
                continue
            if id(tensor) not in by_tensor:
                weight = 1.0 if macs is None else _uses(tensor, macs.get(member.module, 0))
                by_tensor[id(tensor)] = _Term(weight, [_Dimension(size, {}) for size in tensor.shape])
            dimension, each = by_tensor[id(tensor)].dimensions[member.dim], member.index.shape[1]
            if group.name not in dimension.per_unit:
                dimension.per_unit[group.name] = each
                dimension.fixed -= each * group.units
    return [term for term in by_tensor.values() if term.weight]


def _uses(tensor: nn.Parameter, macs: int) -> float:
    """How often each entry of a layer's weight is multiplied."""
    return macs / tensor.numel() if tensor.dim() > 1 else 0.0
