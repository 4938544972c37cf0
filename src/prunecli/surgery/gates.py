"""Gates: factors of 0 or 1 on a group's channels, which close channels and leave their weights as they are.

A gate stands behind the last normalisation, so what the weights in front of it would send on is still computed and the
gate has a gradient while it is closed. With weights of zero in the gate's place the normalisation's own gradient would
be zero, and no channel could show that it is missed. The surrogate of a spiking neuron lets the gradient through. The
derivative of a ReLU at zero does not, so in networks with activation functions gates stand behind those, in front of
the layers that read the channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from prunecli.surgery.axes import leaves
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.taps import layer_input
from prunecli.surgery.tracing.grouping import index_of
from prunecli.surgery.tracing.labels import Followed


@dataclass(frozen=True, eq=False)
class GatePoint:
    """Where a group's channels are gated.

    Attributes:
        module: Dotted name of the module whose output is multiplied, or its input if it `reads`.
        index: Positions of each unit along the dimension that holds the channels, shape (units, positions per unit).
        dim: That dimension of the output.
        reads: Whether it is a linear layer or a convolution that reads the channels.
        columns: If so, how many channels its weight has columns for; each block of a grouped convolution reads as many.
    """

    module: str
    index: Tensor
    dim: int = 1
    reads: bool = False
    columns: int = 0


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


def reading_points(model: nn.Module, group: ChannelGroup, followed: Followed) -> tuple[GatePoint, ...]:
    """The layers that read a group's channels, behind whatever activation there is; see `gate_points`."""
    readers = [
        (member, model.get_submodule(member.module))
        for member in group.members
        if member.role == "consumer" and member.tensor == "weight"
    ]
    return tuple(
        GatePoint(member.module, member.index, reads=True, columns=int(reader.weight.shape[member.dim]))
        for member, reader in readers
        if isinstance(reader, (nn.Linear, _ConvNd))
    )


def _point(name: str, group: ChannelGroup, followed: Followed) -> GatePoint | None:
    labels = followed.outputs.get(name, ())
    if len(labels) != 1:
        return None
    dims = [(dim, term) for dim, term in enumerate(labels[0].dims) if group.axis in tuple(leaves(term))]
    if len(dims) != 1 or group.axis is None:
        return None
    return GatePoint(name, index_of(group.axis, dims[0][1]), dims[0][0])


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
        """Multiplies what the network's modules return, or take in, from now on."""
        for point in self.points:
            module = model.get_submodule(point.module)
            self._handles.append(
                module.register_forward_pre_hook(self._input_multiplier(point), with_kwargs=True)
                if point.reads
                else module.register_forward_hook(self._multiplier(point))
            )

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
        """Makes closed units zero for good: the parameters that write or read them where they are gated.

        Nothing that belongs to an open unit changes.
        """
        closed = ~self.opened
        modules = {(point.module, point.reads) for point in self.points}
        for member in self.group.members:
            tensor = getattr(model.get_submodule(member.module), member.tensor)
            if (member.module, member.role == "consumer") in modules and isinstance(tensor, nn.Parameter):
                with torch.no_grad():
                    tensor.index_fill_(member.dim, member.index[closed].flatten().to(tensor.device), 0)

    def _multiplier(self, point: GatePoint) -> Any:
        def multiply(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return self._gated(output, point, point.dim)

        return multiply

    def _input_multiplier(self, point: GatePoint) -> Any:
        def multiply(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            taken_in = layer_input(args, kwargs)
            if taken_in is None:
                return args, kwargs
            gated = self._gated(taken_in, point, _channel_dim(module, taken_in))
            own = tuple(gated if value is taken_in else value for value in args)
            return own, {name: gated if value is taken_in else value for name, value in kwargs.items()}

        return multiply

    def _gated(self, values: Tensor, point: GatePoint, dim: int) -> Tensor:
        """Values times the factors of their positions along a dimension."""
        width = values.shape[dim]
        factors = self.factors.to(values).repeat_interleave(point.index.shape[1])
        positions = point.index.flatten().to(values.device)
        columns = point.columns or width
        own = torch.ones(columns).to(values).index_copy(0, positions, factors).repeat(width // columns)
        shape = [1] * values.dim()
        shape[dim] = width
        return values * own.view(shape)


def fold_all(model: nn.Module, gates: Iterable[ChannelGate]) -> nn.Module:
    """`ChannelGate.fold` for several gates; returns the network."""
    for gate in gates:
        gate.fold(model)
    return model


def _channel_dim(module: nn.Module, values: Tensor) -> int:
    """The dimension of a layer's input that holds the channels; spikingjelly's convolutions take all steps at once."""
    if not isinstance(module, _ConvNd):
        return values.dim() - 1
    return 2 if values.dim() > module.weight.dim() else 1
