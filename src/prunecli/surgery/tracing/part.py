"""Tracing one module of a network alone, for networks whose other parts cannot be followed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError, PruneError, unknown
from prunecli.inputs import Inputs, call, cast_inputs
from prunecli.surgery.groups import ChannelGroup, Size
from prunecli.surgery.tracing.follow import follow
from prunecli.surgery.tracing.running import one_line
from prunecli.surgery.tracing.traced import Part, Trace


def trace_part(
    model: nn.Module, inputs: Inputs, name: str, trace: Callable[[nn.Module, tuple[Tensor, ...]], Trace]
) -> Trace:
    """The trace of one module, with the names that its layers have in the network.

    Args:
        model: The network; not changed.
        inputs: Inputs the network accepts.
        name: Dotted name of the module.
        trace: Traces the module on what the network gives it.

    Raises:
        ModelError: There is no such module, or it is given something else than tensors.
    """
    names = [found for found, module in model.named_modules() if found and any(True for _ in module.parameters())]
    if name not in names:
        raise ModelError(unknown("module", name, names, see="prune inspect MODEL --layers"))
    _refuse_use_outside(model, inputs, name)
    given = _given(model, inputs, [name]).get(name)
    if given is None:
        raise ModelError(f"--only {name}: the network does not run it, or gives it more than tensors; name another")
    inner = trace(model.get_submodule(name), given)
    return Trace(
        groups=tuple(_renamed(group, name) for group in inner.groups),
        frozen=tuple(replace(entry, name=f"{name}.{entry.name}".rstrip(".")) for entry in inner.frozen),
        dtype=inner.dtype,
        assumptions=inner.assumptions,
        part=Part(name, inner, given),
    )


def _refuse_use_outside(model: nn.Module, inputs: Inputs, name: str) -> None:
    """Refuses a module whose layers the network also uses by another way, which the trace of the module cannot see.

    Raises:
        ModelError: It runs more than once, its layers run outside it, or its parameters stand elsewhere too.
    """
    prefix = f"{name}."
    names: dict[int, set[bool]] = {}
    for tensor, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(tensor.startswith(prefix))
    if any(len(inside) > 1 for inside in names.values()):
        raise ModelError(f"--only {name}: a parameter of it is shared with a layer outside; name a module with both")
    running = copy.deepcopy(model).cpu().eval()
    depth, calls, outside = [0], [0], set[str]()
    part = running.get_submodule(name)

    def entered(module: nn.Module, args: Any) -> None:
        depth[0] += 1
        calls[0] += 1

    def left(module: nn.Module, args: Any, output: Any) -> None:
        depth[0] -= 1

    def checked(inner: str) -> Callable[..., None]:
        return lambda *_: outside.add(inner) if depth[0] == 0 else None

    part.register_forward_pre_hook(entered)
    part.register_forward_hook(left)
    for inner, module in part.named_modules():
        if inner:
            module.register_forward_pre_hook(checked(inner))
    with torch.no_grad():
        call(running, cast_inputs(inputs, device="cpu"))
    if calls[0] > 1:
        raise ModelError(f"--only {name}: the network runs it {calls[0]} times; name the module around it")
    if outside:
        raise ModelError(f"--only {name}: {name}.{min(outside)} also runs outside it; name the module around both")


def parts_that_can_be_followed(model: nn.Module, inputs: Inputs) -> list[str]:
    """Names of the largest modules that can be traced alone, the one with the most parameters first."""
    names = [name for name, module in model.named_modules() if name and _has_inner_width(module)]
    found: list[str] = []
    for name, given in sorted(_given(model, inputs, names).items(), key=lambda item: item[0].count(".")):
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        try:
            follow(copy.deepcopy(model.get_submodule(name)).cpu().eval(), given)
        except (PruneError, RuntimeError):
            continue
        found.append(name)
    return sorted(found, key=lambda name: -sum(p.numel() for p in model.get_submodule(name).parameters()))


def _has_inner_width(module: nn.Module) -> bool:
    """Whether one layer inside reads what another writes, as it has to for anything to be removed."""
    return sum(parameter.dim() > 1 for parameter in module.parameters()) > 1


def _given(model: nn.Module, inputs: Inputs, names: list[str]) -> dict[str, tuple[Tensor, ...]]:
    """What a run of the network gives to modules that take tensors alone."""
    running = copy.deepcopy(model).cpu().eval()
    given: dict[str, tuple[Tensor, ...]] = {}

    def noted(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            extra = [value for value in kwargs.values() if value is not None]
            if args and not extra and all(isinstance(value, Tensor) for value in args):
                given.setdefault(name, tuple(value.detach().clone() for value in args))

        return hook

    for name in names:
        running.get_submodule(name).register_forward_pre_hook(noted(name), with_kwargs=True)
    try:
        with torch.no_grad():
            call(running, cast_inputs(inputs, device="cpu"))
    except Exception as error:
        raise ModelError(f"the model does not run on the example inputs: {one_line(error)}") from error
    return given


def _renamed(group: ChannelGroup, outer: str) -> ChannelGroup:
    def name(inner: str) -> str:
        return f"{outer}.{inner}" if inner else outer

    def size(inner: Size) -> Size:
        group_name = name(inner.group) if inner.kind == "group" else ""
        return replace(inner, group=group_name, parts=tuple(size(part) for part in inner.parts))

    return replace(
        group,
        name=name(group.name),
        members=tuple(replace(member, module=name(member.module)) for member in group.members),
        widths=tuple(replace(width, module=name(width.module), size=size(width.size)) for width in group.widths),
        scales=tuple(replace(s, group=name(s.group), module=name(s.module)) for s in group.scales),
        emissions=tuple(replace(emission, module=name(emission.module)) for emission in group.emissions),
    )
