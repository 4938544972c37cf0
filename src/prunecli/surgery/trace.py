"""Which parameters are one channel: groups from torch-pruning's dependency graph, each checked by a trial removal."""

from __future__ import annotations

import copy
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.errors import ModelError
from prunecli.measure.forward import Inputs, call, cast_inputs
from prunecli.surgery.groups import ChannelGroup, Frozen, Member, Role, Trace, tie_units
from prunecli.surgery.verify import faulty_groups

STEM = "first layer (protected; --prune-stem to include it)"
OUTPUT = "output layer: its width is the model's output"
UNREACHED = "not reached by the forward pass"
UNEVEN = "tied to layers of another width (padded or sliced shortcut)"
SINGLE = "its channels can only be removed all together"


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


def trace(model: nn.Module, example_inputs: Inputs, *, prune_stem: bool = False, time_limit_s: float = 120.0) -> Trace:
    """Finds the channel groups of `model`.

    Every group returned has been removed on a trial copy and compared with masking, so it can be sliced safely; what
    fails that trial is returned as frozen, with the reason. The model is not changed.

    Args:
        model: Any module; frozen parameters are included.
        example_inputs: Inputs of a shape the model accepts, for instance (1, 3, 224, 224).
        prune_stem: Whether the first layer's width may change.
        time_limit_s: Seconds after which the graph is given up (main thread only).

    Raises:
        ModelError: The model cannot be run or traced on these inputs.
    """
    # Tracing reads autograd's graph, so frozen parameters would be invisible: work on a copy that asks for gradients.
    values = example_inputs.values() if isinstance(example_inputs, Mapping) else example_inputs
    if not isinstance(example_inputs, Tensor) and not all(isinstance(value, Tensor) for value in values):
        raise ModelError("example_inputs has to be a tensor, a tuple of tensors or a mapping of them")
    traced = copy.deepcopy(model).cpu().eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    inputs = cast_inputs(example_inputs, device="cpu")
    order = _call_order(traced, inputs)
    names = {module: name for name, module in traced.named_modules()}
    groups: list[ChannelGroup] = []
    frozen: list[Frozen] = []
    tied = _shared_parameters(traced)
    stem = next((name for name in order if isinstance(traced.get_submodule(name), _ConvNd)), order[0] if order else "")
    for items in _dependency_groups(traced, inputs, time_limit_s):
        producers = [
            (names[module], _width(module))
            for module, output in ((item.dep.target.module, item.output) for item in items)
            if output and isinstance(module, (_ConvNd, nn.Linear))
        ]
        producers = list(dict.fromkeys(producers))
        reason = None
        try:
            group = _channel_group(traced, names, order, items)
            shared = next((member.name for member in group.members if member.name in tied), None)
            if shared is not None:
                reason = f"{shared} is shared with another layer"
            elif not group.modules("consumer"):
                reason = OUTPUT
            elif stem in group.modules("producer") and not prune_stem:
                reason = STEM
            elif group.units == 1:
                reason = SINGLE
            else:
                groups.append(group)
        except _RefusedError as error:
            reason = str(error)
        if reason is not None:
            frozen += [Frozen(name, width, reason) for name, width in producers]
    faulty = faulty_groups(traced, groups, inputs)
    for group in groups:
        if group.name in faulty:
            frozen += [
                Frozen(name, _width(traced.get_submodule(name)), faulty[group.name])
                for name in group.modules("producer")
            ]
    kept = tuple(group for group in groups if group.name not in faulty)
    frozen += _left_over(traced, order, kept, frozen)
    return Trace(groups=kept, frozen=tuple(frozen))


def _shared_parameters(model: nn.Module) -> set[str]:
    """Names of parameters that stand in the model more than once."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for shared in names.values() if len(shared) > 1 for name in shared}


def _call_order(model: nn.Module, inputs: Inputs) -> list[str]:
    """Runs the model once; names of its convolutions and linear layers in the order they are called."""
    order: list[str] = []

    def recorder(name: str) -> Callable[..., None]:
        return lambda *_: order.append(name)

    hooks = [
        module.register_forward_pre_hook(recorder(name))
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    ]
    try:
        with torch.no_grad():
            call(model, inputs)
    except Exception as error:
        raise ModelError(f"the model does not run on the example inputs: {_one_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(order))


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
            raise ModelError(f"the model's channels cannot be traced: {_one_line(error)}") from error


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
            found = [(_Slot(leaf, _only_dim(target, len(item.positions), leaf), "carrier"), item.positions)]
        elif target in names:
            module = names[target]
            found = _slots(target, module, item, channels, ties)
        else:
            continue  # torch-pruning's own nodes for reshapes, additions and the like hold no tensors
        for slot, positions in found:
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
        raise _RefusedError(UNEVEN)
    return Member(module, slot.tensor, slot.dim, pairs[:, 1].reshape(units, -1), slot.role)


def _left_over(
    model: nn.Module, order: list[str], groups: tuple[ChannelGroup, ...], frozen: list[Frozen]
) -> list[Frozen]:
    """Layers that stand in no group and no refusal yet: nothing may be left out in silence."""
    seen = {entry.name for entry in frozen}
    for group in groups:
        seen.update(group.modules("producer", "carrier"))
    return [
        Frozen(name, _width(module), UNREACHED if name not in order else "its output is not followed by the tracer")
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear)) and name not in seen
    ]


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels == module.out_channels
    )


def _width(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def _only_dim(parameter: nn.Parameter, size: int, name: str) -> int:
    dims = [dim for dim, length in enumerate(parameter.shape) if length > 1]
    if len(dims) != 1 or parameter.shape[dims[0]] != size:
        raise _RefusedError(
            f"coupled to parameter {name!r} of shape {tuple(parameter.shape)}, which has no removal rule"
        )
    return dims[0]


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


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
