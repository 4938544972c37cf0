"""Switching residual blocks off, so that they pass on what they are given: what removing them has to equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from prunecli.inputs import map_tensors
from prunecli.surgery.blocks.residual import ResidualBlock, passed_tensors


@contextmanager
def switched_off(model: nn.Module, blocks: Iterable[ResidualBlock]) -> Iterator[None]:
    """A context in which blocks return the stream that they are given."""
    with ExitStack() as undo:
        for block in blocks:
            module = model.get_submodule(block.name)
            undo.enter_context(_passing(module, block.tensor) if block.bare else _replacing(module, block.tensor))
        yield


@contextmanager
def _passing(module: nn.Module, tensor: int) -> Iterator[None]:
    """A module that returns a tensor does not run at all."""
    own = vars(module).get("forward")
    object.__setattr__(module, "forward", lambda *args, **kwargs: passed_tensors(args, kwargs)[tensor])
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", own)


@contextmanager
def _replacing(module: nn.Module, tensor: int) -> Iterator[None]:
    """A module that returns more runs, for the rest of what it returns."""

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        stream = passed_tensors(args, kwargs)[tensor]
        waiting = [stream]

        def first_replaced(found: Tensor) -> Tensor:
            return waiting.pop() if waiting and found.is_floating_point() else found

        return map_tensors(output, first_replaced)

    hook = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
