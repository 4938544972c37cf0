"""What each channel of each group costs: parameters, multiply-accumulates, or measured time, as products of widths.

A weight has as many entries as the product of its dimensions, and each dimension is what it is without the groups that
lie along it, plus so much for each of their units. A layer multiplies every entry of its weight as often as it has
positions, whatever its widths. Time is a product too, of what each dimension was measured to make of it. Products of
two activations, such as attention's, are left out: this decides between groups, and how much is removed in all is
measured on the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunecli.collective import first_decides
from prunecli.inputs import Inputs
from prunecli.measure.counts import module_macs
from prunecli.measure.layer_times import time_layers, width_curve
from prunecli.surgery.groups import ChannelGroup

Units = Mapping[str, "float | NDArray[Any]"]
"""Units of each group; of one of them there may be several numbers at once."""
_POINTS = 16
"""Widths of a layer that are timed, at most, beside the first and the last."""
_ALIKE = 1.02
"""Times closer than this are the same."""


@dataclass
class _Dimension:
    """One dimension of a tensor: entries of no group, and entries for each unit of its groups.

    Attributes:
        fixed: Entries of no group.
        per_unit: Entries for each unit, by group.
        curve: Sizes, and what the cost is multiplied by with each; None: the size itself.
        written: Whether these are channels that the layer writes or passes on, rather than reads.
    """

    fixed: int
    per_unit: dict[str, int] = field(default_factory=dict)
    curve: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    written: bool = False

    def size(self, units: Units) -> NDArray[np.float64]:
        return np.asarray(
            self.fixed + sum(each * units[name] for name, each in self.per_unit.items()), dtype=np.float64
        )

    def factor(self, units: Units) -> NDArray[np.float64]:
        size = self.size(units)
        return size if self.curve is None else np.asarray(np.interp(size, *self.curve))


@dataclass
class _Term:
    """A tensor: its dimensions, and what each entry costs."""

    weight: float
    dimensions: list[_Dimension]

    def cost(self, units: Units) -> NDArray[np.float64]:
        return np.asarray(self.weight * math.prod(dimension.factor(units) for dimension in self.dimensions))

    @property
    def groups(self) -> set[str]:
        return {name for dimension in self.dimensions for name in dimension.per_unit}


class LayerCosts:
    """Cost of a network's groups as a function of the units that they keep.

    Args:
        model: The network.
        groups: Its groups.
        kind: "channels", "params", "macs", or "latency".
        inputs: Inputs that it accepts.
        allowed: With "latency": numbers of units that each group may keep, ascending.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        kind: str,
        inputs: Inputs,
        allowed: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._whole: dict[str, float] = {group.name: group.units for group in groups}
        if kind == "channels":
            each = {group.name: group.channels_per_unit for group in groups}
            self._terms = [_Term(1.0, [_Dimension(0, each)])]
        elif kind == "latency":
            self._terms = first_decides(lambda: _timed(model, groups, inputs, allowed or {}))
        else:
            self._terms = _terms(model, groups, module_macs(model, inputs) if kind == "macs" else None)

    def total(self, units: Units) -> float:
        """The cost when so many units of each group are left, of the tensors in which any group lies."""
        return float(sum(term.cost({**self._whole, **units}) for term in self._terms))

    def prices(self, name: str, numbers: NDArray[np.int64], units: Units) -> NDArray[np.float64]:
        """The cost of the tensors in which a group lies, with several numbers of its units and those of the others."""
        present = {**self._whole, **units, name: numbers}
        costs = [term.cost(present) for term in self._terms if name in term.groups]
        return np.add.reduce(costs) if costs else np.zeros(len(numbers))

    def worthwhile(self, name: str, numbers: Sequence[int]) -> list[int]:
        """Those numbers of units than which no greater one costs about as little, the other groups whole.

        The least is always among them, and so are all where nothing is known about their costs.
        """
        costs = self.prices(name, np.asarray(numbers), {})
        if not costs.any():
            return list(numbers)
        least_above = np.append(np.minimum.accumulate(costs[::-1])[::-1][1:], np.inf)
        less = costs * _ALIKE < least_above
        return [number for place, number in enumerate(numbers) if less[place] or place == 0]


def _terms(model: nn.Module, groups: Sequence[ChannelGroup], macs: Mapping[str, int] | None) -> list[_Term]:
    by_tensor = _shapes(model, groups, tied=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if macs is not None:
        for name, term in by_tensor.items():
            term.weight = _uses(parameters[name], macs.get(name.rpartition(".")[0], 0))
    return [term for term in by_tensor.values() if term.weight]


def _shapes(model: nn.Module, groups: Sequence[ChannelGroup], *, tied: bool) -> dict[str, _Term]:
    """Tensors in which groups lie, by name; those that are `tied` once, by their first name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    terms: dict[str, _Term] = {}
    for group in groups:
        for member in group.members:
            tensor = parameters.get(member.name)
            if tensor is None:
                continue
            name = first.setdefault(id(tensor), member.name) if tied else member.name
            if name not in terms:
                terms[name] = _Term(1.0, [_Dimension(size) for size in tensor.shape])
            dimension, each = terms[name].dimensions[member.dim], member.index.shape[1]
            dimension.written |= member.role != "consumer"
            if group.name not in dimension.per_unit:
                dimension.per_unit[group.name] = each
                dimension.fixed -= each * group.units
    return terms


def _uses(tensor: nn.Parameter, macs: int) -> float:
    """How often each entry of a layer's weight is multiplied."""
    return macs / tensor.numel() if tensor.dim() > 1 else 0.0


def _timed(
    model: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, allowed: Mapping[str, Sequence[int]]
) -> list[_Term]:
    """One term for each module that takes time: that of its largest tensor, and of modules without any that follow."""
    times = time_layers(model, inputs)
    largest: dict[str, _Term] = {}
    for name, term in _shapes(model, groups, tied=False).items():
        module = name.rpartition(".")[0]
        if module not in largest or _entries(term, groups) > _entries(largest[module], groups):
            largest[module] = term
    known: dict[object, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    terms: list[_Term] = []
    for module, seconds in times.seconds.items():
        source = times.follows.get(module, module)
        if source not in largest:
            continue
        dimensions = []
        for dim, dimension in enumerate(largest[source].dimensions):
            if not dimension.per_unit or (source != module and not dimension.written):
                continue
            whole = float(dimension.size({group.name: group.units for group in groups}))
            curve = (np.array([0.0, whole]), np.array([0.0, 1.0]))
            example = times.inputs.get(module)
            if source == module and example is not None:
                layer = model.get_submodule(module)
                sizes = _measured_sizes(dimension, groups, allowed)
                key = (repr(layer), tuple(example.shape), dim, tuple(sizes))
                if key not in known and (measured := width_curve(layer, example, dim, sizes)) is not None:
                    known[key] = (np.asarray(sizes, dtype=np.float64), measured / measured[-1])
                curve = known.get(key, curve)
            dimensions.append(_Dimension(dimension.fixed, dimension.per_unit, curve))
        terms.append(_Term(seconds, dimensions))
    return terms


def _entries(term: _Term, groups: Sequence[ChannelGroup]) -> float:
    whole = {group.name: group.units for group in groups}
    return float(math.prod(dimension.size(whole) for dimension in term.dimensions))


def _measured_sizes(
    dimension: _Dimension, groups: Sequence[ChannelGroup], allowed: Mapping[str, Sequence[int]]
) -> list[int]:
    """Sizes of a dimension at which it is timed: those that its group may have, or sixteenths."""
    whole = int(dimension.size({group.name: group.units for group in groups}))
    sizes = [max(1, round(whole * part / _POINTS)) for part in range(1, _POINTS + 1)]
    if len(dimension.per_unit) == 1:
        ((name, each),) = dimension.per_unit.items()
        sizes = [dimension.fixed + each * count for count in allowed.get(name, ())] or sizes
    return sorted({*sizes, whole})


def thinned(numbers: Sequence[int]) -> list[int]:
    """As many of some numbers as are timed: multiples of a large enough power of two, the first and the last."""
    step, taken = 1, list(numbers)
    while len(taken) > _POINTS + 2:
        step *= 2
        taken = [number for number in numbers if number % step == 0 or number in (numbers[0], numbers[-1])]
    return taken
