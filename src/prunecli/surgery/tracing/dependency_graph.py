"""The second tracer: channel groups from torch-pruning's dependency graph, to compare the first one's with."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.copying import copied
from prunecli.errors import ModelError, described
from prunecli.inputs import Inputs, cast_inputs
from prunecli.surgery.groups import ChannelGroup, Member, Role, tie_units


class _RefusedError(Exception):
    """A group cannot be described by members; the text says why."""


@dataclass
class _Slot:
    """Collects (root channel, position) pairs of one tensor dimension."""

    tensor: str
    dim: int
    role: Role
    roots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


def dependency_groups(
    model: nn.Module, example_inputs: Inputs, *, time_limit_s: float = 120.0
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Channel groups according to torch-pruning's dependency graph.

    The second tracer: it knows convolutions, linear layers and batch normalisation, reads autograd's graph instead of
    operators, and is right on many convolutional networks. Where both tracers are, they have to agree.

    Args:
        model: Any module; it is not changed.
        example_inputs: Inputs of a shape the model accepts.
        time_limit_s: Seconds after which the graph is given up (main thread only).

    Returns:
        Groups with a reader, and by first layer the reason why another one cannot be described.

    Raises:
        ModelError: The graph cannot be built.
    """
    # Tracing reads autograd's graph, so frozen parameters would be invisible: work on a copy that asks for gradients.
    traced = copied(model).cpu().eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    inputs = cast_inputs(example_inputs, device="cpu")
    names = {module: name for name, module in traced.named_modules()}
    order = [name for name, module in traced.named_modules() if isinstance(module, (_ConvNd, nn.Linear))]
    groups: list[ChannelGroup] = []
    refused: dict[str, str] = {}
    for items in _dependency_groups(traced, inputs, time_limit_s):
        try:
            group = _channel_group(traced, names, order, items)
        except _RefusedError as error:
            refused[names[items[0].dep.target.module]] = str(error)
            continue
        if group.modules("consumer"):
            groups.append(group)
    return groups, refused


@dataclass
class _Item:
    """One entry of a dependency group: what is touched, at which positions, for which root channels."""

    dep: Any
    positions: list[int]
    roots: list[int]
    output: bool


def _dependency_groups(model: nn.Module, inputs: Inputs, time_limit_s: float) -> list[list[_Item]]:
    with warnings.catch_warnings(), _time_limit(time_limit_s) as expired:
        warnings.simplefilter("ignore")
        try:
            # The graph takes a tuple or a dict; a bare tensor would be unpacked along its batch dimension.
            example = (inputs,) if isinstance(inputs, Tensor) else inputs
            graph = tp.DependencyGraph().build_dependency(model, example, verbose=False)
            return [
                [
                    _Item(item.dep, list(item.idxs), list(item.root_idxs), graph.is_out_channel_pruning_fn(handler))
                    for item, handler in ((item, item.dep.handler) for item in group.items)
                ]
                for group in graph.get_all_groups()
            ]
        except Exception as error:
            if expired.is_set():
                raise ModelError(f"tracing took more than {time_limit_s:g} s and was given up") from error
            raise ModelError(f"the model's channels cannot be traced: {described(error)}") from error


def _channel_group(model: nn.Module, names: dict[nn.Module, str], order: list[str], items: list[_Item]) -> ChannelGroup:
    root = items[0]
    channels = len(root.roots)
    slots: dict[tuple[str, str, int], _Slot] = {}
    ties: list[Tensor] = []
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    for item in items:
        target = item.dep.target.module
        if isinstance(target, nn.Parameter):
            module, _, leaf = parameters[id(target)].rpartition(".")
            touched = [(_Slot(leaf, _only_dim(target, len(item.positions), leaf), "carrier"), item.positions)]
        elif target in names:
            module = names[target]
            touched = _slots(target, module, item, channels, ties)
        else:
            continue  # torch-pruning's own nodes for reshapes, additions and the like hold no tensors
        for slot, positions in touched:
            slot = slots.setdefault((module, slot.tensor, slot.dim), slot)
            slot.roots += item.roots
            slot.positions += positions
    unit_of = tie_units(channels, ties)
    units = int(unit_of.max()) + 1
    members = [_member(model, module, slot, unit_of, units) for (module, _, _), slot in slots.items()]
    producers = {member.module for member in members if member.role == "producer"}
    first = next((name for name in order if name in producers), names[root.dep.target.module])
    return ChannelGroup(name=first, units=units, channels=channels, members=tuple(members))


def _slots(
    target: nn.Module, name: str, item: _Item, channels: int, ties: list[Tensor]
) -> list[tuple[_Slot, list[int]]]:
    """The tensor dimensions of `target` that the item occupies; appends ties that a grouped convolution needs."""
    if isinstance(target, _BatchNorm):
        tensors = ("weight", "bias", "running_mean", "running_var")
        return [(_Slot(t, 0, "carrier"), item.positions) for t in tensors if getattr(target, t) is not None]
    if isinstance(target, nn.PReLU):
        return [] if target.num_parameters == 1 else [(_Slot("weight", 0, "carrier"), item.positions)]
    if isinstance(target, nn.Linear):
        if not item.output:
            return [(_Slot("weight", 1, "consumer"), item.positions)]
        return [(_Slot(t, 0, "producer"), item.positions) for t in ("weight", "bias") if getattr(target, t) is not None]
    if isinstance(target, _ConvNd):
        return _conv_slots(target, name, item, channels, ties)
    if any(True for _ in target.parameters(recurse=False)) or any(True for _ in target.buffers(recurse=False)):
        raise _RefusedError(f"coupled to {name} ({type(target).__name__}), which has no removal rule")
    return []


def _conv_slots(
    conv: _ConvNd, name: str, item: _Item, channels: int, ties: list[Tensor]
) -> list[tuple[_Slot, list[int]]]:
    written = [t for t in ("weight", "bias") if getattr(conv, t) is not None]
    if _is_depthwise(conv):
        return [(_Slot(t, 0, "carrier"), item.positions) for t in written]
    transposed = isinstance(conv, _ConvTransposeNd)
    if conv.groups > 1:
        if transposed:
            raise _RefusedError(f"coupled to {name}, a grouped transposed convolution, which has no removal rule")
        # Every block must keep equally many channels: tie the channels at the same place of each block.
        block = (conv.out_channels if item.output else conv.in_channels) // conv.groups
        labels = torch.arange(channels) + block
        labels[torch.tensor(item.roots)] = torch.tensor(item.positions) % block
        ties.append(labels)
        if not item.output:
            return [(_Slot("weight", 1, "consumer"), [position % block for position in item.positions])]
    if not item.output:
        return [(_Slot("weight", 0 if transposed else 1, "consumer"), item.positions)]
    return [(_Slot(t, 1 if transposed and t == "weight" else 0, "producer"), item.positions) for t in written]


def _member(model: nn.Module, module: str, slot: _Slot, unit_of: Tensor, units: int) -> Member:
    pairs = torch.stack([unit_of[torch.tensor(slot.roots)], torch.tensor(slot.positions)], dim=1)
    pairs = torch.unique(pairs, dim=0)
    counts = torch.bincount(pairs[:, 0], minlength=units)
    size = getattr(model.get_submodule(module), slot.tensor).shape[slot.dim]
    covered = torch.unique(pairs[:, 1]).numel()
    if int(counts.min()) != int(counts.max()) or (slot.role == "producer" and covered != size):
        raise _RefusedError("tied to layers of another width (padded or sliced shortcut)")
    return Member(module, slot.tensor, slot.dim, pairs[:, 1].reshape(units, -1), slot.role)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels == module.out_channels
    )


def _only_dim(parameter: nn.Parameter, size: int, name: str) -> int:
    dims = [dim for dim, length in enumerate(parameter.shape) if length > 1]
    if len(dims) != 1 or parameter.shape[dims[0]] != size:
        raise _RefusedError(
            f"coupled to parameter {name!r} of shape {tuple(parameter.shape)}, which has no removal rule"
        )
    return dims[0]


@contextmanager
def _time_limit(seconds: float) -> Iterator[threading.Event]:
    """Sets the event and raises TimeoutError after `seconds`, in the main thread of a Unix process; else no limit."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield event
        return

    def expired(signum: int, frame: FrameType | None) -> None:
        event.set()
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expired)
    # Again and again: the library has bare excepts that may swallow the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    try:
        yield event
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
