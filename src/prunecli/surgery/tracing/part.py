"""Tracing one module of a network alone, for networks whose other parts cannot be followed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunecli.copying import copied
from prunecli.errors import ModelError, PruneError, described, unknown
from prunecli.inputs import Inputs, call, cast_inputs, fitted, map_tensors, output_tensors
from prunecli.naming import layer_list, option
from prunecli.patterns import chosen
from prunecli.surgery.groups import ChannelGroup, Size
from prunecli.surgery.tracing.follow import follow
from prunecli.surgery.tracing.traced import Part, Trace


def trace_part(model: nn.Module, inputs: Inputs, name: str, trace: Callable[[nn.Module, Inputs], Trace]) -> Trace:
    """The trace of one module, with the names that its layers have in the network.

    Args:
        model: The network; not changed.
        inputs: Inputs the network accepts.
        name: Dotted name of the module, or a shell pattern that means one.
        trace: Traces the module on its inputs in the network.

    Raises:
        ModelError: There is no such module, or it takes no tensors, or the network does not run.
    """
    name = _meant(model, name)
    _refuse_use_outside(model, inputs, name)
    part_inputs = _inputs_of(model, inputs, [name]).get(name)
    if part_inputs is None:
        raise ModelError(
            f"{option('only', name)}: the network does not run it, or not on tensors; choose another module"
        )
    inner = trace(model.get_submodule(name), part_inputs)
    return Trace(
        groups=tuple(_renamed(group, name) for group in inner.groups),
        frozen=tuple(replace(entry, name=f"{name}.{entry.name}".rstrip(".")) for entry in inner.frozen),
        dtype=inner.dtype,
        assumptions=inner.assumptions,
        part=Part(name, inner, part_inputs),
    )


def _meant(model: nn.Module, pattern: str) -> str:
    """The one module that a name or shell pattern means; where it means a module and others inside it, the outer one.

    Raises:
        ModelError: There is none, or there are several.
    """
    names = [path for path, module in model.named_modules() if path and any(True for _ in module.parameters())]
    found = chosen(names, pattern)
    found = [name for name in found if not any(name.startswith(f"{outer}.") for outer in found)]
    if not found:
        raise ModelError(f"{option('only', pattern)}: {unknown('module', pattern, names, see=layer_list())}")
    if len(found) > 1:
        more = " ..." * (len(found) > 3)
        raise ModelError(f"{option('only', pattern)}: means {', '.join(found[:3])}{more}; name one of them")
    return found[0]


def _refuse_use_outside(model: nn.Module, inputs: Inputs, name: str) -> None:
    """Refuses a module with layers that the network also uses outside it, which its trace cannot show.

    Raises:
        ModelError: It runs more than once, its layers run outside it, or it shares parameters with other modules.
    """
    prefix = f"{name}."
    names: dict[int, set[bool]] = {}
    for tensor, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(tensor.startswith(prefix))
    if any(len(inside) > 1 for inside in names.values()):
        raise ModelError(
            f"{option('only', name)}: it shares a parameter with a layer outside; choose a module with both"
        )
    running = copied(model).cpu().eval()
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
    _run(running, inputs)
    if calls[0] > 1:
        raise ModelError(f"{option('only', name)}: the network runs it {calls[0]} times; choose the module around it")
    if outside:
        raise ModelError(
            f"{option('only', name)}: {name}.{min(outside)} also runs outside it; choose the module around both"
        )


def parts_that_can_be_followed(model: nn.Module, inputs: Inputs) -> list[str]:
    """Names of the largest modules that can be traced alone, the one with the most parameters first."""
    names = [name for name, module in model.named_modules() if name and _has_inner_width(module)]
    parts: list[str] = []
    for name, part_inputs in sorted(_inputs_of(model, inputs, names).items(), key=lambda item: item[0].count(".")):
        if any(name.startswith(f"{outer}.") for outer in parts):
            continue
        try:
            follow(copied(model.get_submodule(name)).cpu().eval(), part_inputs)
        except (PruneError, RuntimeError):
            continue
        parts.append(name)
    return sorted(parts, key=lambda name: -sum(p.numel() for p in model.get_submodule(name).parameters()))


def _has_inner_width(module: nn.Module) -> bool:
    """Whether it has at least two layers, so that one can read what another writes."""
    return sum(parameter.dim() > 1 for parameter in module.parameters()) > 1


def _inputs_of(model: nn.Module, inputs: Inputs, names: list[str]) -> dict[str, Inputs]:
    """The inputs of modules in a run of the network, for those that take tensors."""
    running = copied(model).cpu().eval()
    by_module: dict[str, Inputs] = {}

    def noted(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in by_module:
                given = _as_inputs(module, args, kwargs)
                if output_tensors(given):
                    by_module[name] = map_tensors(given, lambda tensor: tensor.detach().clone())

        return hook

    for name in names:
        running.get_submodule(name).register_forward_pre_hook(noted(name), with_kwargs=True)
    _run(running, inputs)
    return by_module


def _as_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """Arguments of a call as positional ones if there are no others, else all by keyword; empty if neither can be."""
    if not kwargs:
        return args
    if not args:
        return kwargs
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return ()
    positional, named = bound.args, bound.kwargs
    if not named:
        return positional
    kinds = inspect.signature(module.forward).parameters.values()
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) for parameter in kinds):
        return ()
    return {**dict(zip((parameter.name for parameter in kinds), positional, strict=False)), **named}


def _run(model: nn.Module, inputs: Inputs) -> None:
    """Runs the network for the hooks on its modules.

    Raises:
        ModelError: It does not run.
    """
    try:
        with torch.no_grad():
            call(model, fitted(cast_inputs(inputs, device="cpu"), model))
    except Exception as error:
        raise ModelError(f"the model does not run on the example inputs: {described(error)}") from error


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
