"""Functions on a network that hold the network itself: a copy of it would go on computing with the original."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from prunecli.errors import ModelError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def refuse_closures(model: nn.Module) -> None:
    """Refuses hooks and functions that refer to a module of the network, or to a container that one of them keeps.

    Copies share functions. What a function holds is not copied with the module, so the copy would use the original's.
    Methods are no trouble: their copies belong to the copy.

    Raises:
        ModelError: With the module and attribute.
    """
    modules = {id(module): name or "the model itself" for name, module in model.named_modules()}
    kept = {
        id(value): ".".join(part for part in (name, attribute) if part)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if not attribute.startswith("_") and isinstance(value, (list, dict, set))
    }
    for where, function in _functions(model):
        for held in _held(function):
            what = modules.get(id(held)) or kept.get(id(held))
            if what is not None:
                raise ModelError(
                    f"{where} is a function that holds {what}, so a copy of the network would still use the original; "
                    "make it a method, or let it reach what it needs through its arguments"
                )


def _functions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for attribute, value in vars(module).items():
            if attribute in _HOOKS:
                yield from ((f"a hook of {name or 'the model'}", hook) for hook in value.values())
            elif isinstance(value, (FunctionType, functools.partial)):
                yield prefix + attribute, value


def _held(function: Any) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        function = function.func
    if isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not set yet
                continue
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
