"""Gates: factors of 0 or 1 on a group's channels, which close channels and leave their weights as they are.

A gate stands behind the last normalisation, so what the weights in front of it would send on is still computed and the
gate has a gradient while it is closed. With weights of zero in the gate's place the normalisation's own gradient would
be zero, and no channel could show that it is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from prunecli.surgery.axes import leaves
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.grouping import index_of
from prunecli.surgery.tracing.labels import Followed


@dataclass(frozen=True, eq=False)
class GatePoint:
    """Where a group's channels are gated.

    Attributes:
        module: Dotted name of the module whose output is multiplied.
        dim: Dimension of the output that holds the channels.
        index: Positions along `dim` of each unit, shape (units, positions per unit).
    """

    module: str
    dim: int
    index: Tensor


def gate_points(model: nn.Module, group: ChannelGroup, followed: Followed) -> tuple[GatePoint, ...]:
    """The fewest modules behind which a group's channels can be closed; empty if there is no such place.

    These are the normalisations of single channels with no other one of the group further on, and layers that write
    the channels past all of those. In a residual stream there are several, which are closed together.

    Args:
        model: The network.
        group: The group, of the trace that `followed` belongs to.
        followed: The run of the network.
    """
    norms = [name for name in group.modules("carrier") if isinstance(model.get_submodule(name), _NormBase)]
    behind = {name: _behind(name, group, followed) for name in norms}
    last = [name for name in norms if not any(name in behind[other] for other in norms if other != name)]
    reached = set[str]().union(*(behind[name] for name in last))
    names = [*last, *(name for name in group.modules("producer") if name not in reached)]
    points = [_point(name, group, followed) for name in names]
    found = [point for point in points if point is not None]
    return tuple(found) if len(found) == len(points) else ()


def _point(name: str, group: ChannelGroup, followed: Followed) -> GatePoint | None:
    labels = followed.outputs.get(name, ())
    if len(labels) != 1:
        return None
    dims = [(dim, term) for dim, term in enumerate(labels[0].dims) if group.axis in tuple(leaves(term))]
    if len(dims) != 1 or group.axis is None:
        return None
    return GatePoint(name, dims[0][0], index_of(group.axis, dims[0][1]))


def _behind(name: str, group: ChannelGroup, followed: Followed) -> set[str]:
    """Modules that the channels have come through when a module takes them in, the layers that wrote them included.

    Layers that write the channels from channels of their own kind one by one, such as depthwise convolutions, are no
    beginning; those that read them all are.
    """
    mixing = frozenset(group.modules("consumer"))
    made_at: dict[int, list[int]] = {}
    for number, record in enumerate(followed.records):
        for label in record.outputs:
            made_at.setdefault(id(label), []).append(number)
    waiting = [number for number, record in enumerate(followed.records) if record.module == name]
    seen: set[int] = set()
    modules: set[str] = set()
    while waiting:
        number = waiting.pop()
        for label in followed.records[number].inputs if number not in seen else ():
            # An operator that works in place has the label it writes to among its inputs: what counts came before.
            before = [maker for maker in made_at.get(id(label), ()) if maker < number]
            if before and any(group.axis in tuple(leaves(term)) for term in label.dims):
                module = followed.records[before[-1]].module
                modules.add(module)
                waiting += before[-1:] if module not in mixing else []
        seen.add(number)
    return modules - {name}


class ChannelGate:
    """The gate of one group: a factor of 0 or 1 for each unit, multiplied wherever the group is gated.

    The factors are a leaf of autograd's graph, and neither a parameter nor a buffer of the network: no optimizer moves
    them and no checkpoint holds them.

    Args:
        group: The group.
        points: Where it is gated.
        device: Where the network is.
    """

    def __init__(self, group: ChannelGroup, points: Sequence[GatePoint], device: torch.device | None = None) -> None:
        self.group, self.points = group, tuple(points)
        self.factors = torch.ones(group.units, device=device, requires_grad=True)
        self._handles: list[RemovableHandle] = []

    @property
    def opened(self) -> Tensor:
        """Which units are open, shape (units,), on the CPU."""
        return self.factors.detach().cpu() != 0

    def to(self, device: torch.device) -> None:
        """Moves the factors to where the network is."""
        self.factors = self.factors.detach().to(device).requires_grad_()

    def open_only(self, units: Tensor) -> None:
        """Opens the units of a boolean mask, and closes the others."""
        with torch.no_grad():
            self.factors.copy_(units.to(self.factors))

    def attach(self, model: nn.Module) -> None:
        """Multiplies the outputs of the network's modules from now on."""
        for point in self.points:
            self._handles.append(model.get_submodule(point.module).register_forward_hook(self._multiplier(point)))

    def detach(self) -> None:
        """Leaves the outputs as they are again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def taken_gradient(self) -> Tensor | None:
        """The derivative of the loss by the factors since the last call, added up over batches; None without one."""
        gradient, self.factors.grad = self.factors.grad, None
        return gradient

    def fold(self, model: nn.Module) -> None:
        """Makes closed units zero for good: scales and shifts of their normalisations, or the layers that write them.

        Nothing that belongs to an open unit changes.
        """
        closed, modules = ~self.opened, {point.module for point in self.points}
        for member in self.group.members:
            tensor = getattr(model.get_submodule(member.module), member.tensor)
            if member.module in modules and member.role != "consumer" and isinstance(tensor, nn.Parameter):
                with torch.no_grad():
                    tensor.index_fill_(member.dim, member.index[closed].flatten().to(tensor.device), 0)

    def _multiplier(self, point: GatePoint) -> Any:
        positions, repeats = point.index.flatten(), point.index.shape[1]

        def multiply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            width = output.shape[point.dim]
            factors = self.factors.to(output)
            if repeats > 1:
                factors = factors.repeat_interleave(repeats)
            factors = torch.ones(width).to(output).index_copy(0, positions.to(output.device), factors)
            return output * factors.view([width if dim == point.dim else 1 for dim in range(output.dim())])

        return multiply


def fold_all(model: nn.Module, gates: Iterable[ChannelGate]) -> nn.Module:
    """`ChannelGate.fold` for several gates; returns the network."""
    for gate in gates:
        gate.fold(model)
    return model
