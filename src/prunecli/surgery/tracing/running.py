"""Running a network so that its modules and operators can be watched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunecli.measure.kernels import without_mkldnn


class ModuleListener(Protocol):
    """Follows which modules run."""

    def entered(self, name: str) -> None:
        """A module begins."""
        ...

    def left(self, name: str, output: Any) -> None:
        """A module returns `output`."""
        ...


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among an operator's arguments or results, in order, those in sequences and mappings included."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors_in(*value)
        elif isinstance(value, dict) and value:
            found += tensors_in(*value.values())
    return found


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and recurrent layers as plain products and sums instead of fused kernels, which hide operators."""
    with without_fastpath(), without_inference_mode(), without_mkldnn(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def without_inference_mode() -> Iterator[None]:
    """Makes `torch.inference_mode` do nothing: inside it operators arrive whole, such as conv2d and linear."""
    kind = torch.inference_mode
    enter, leave = kind.__enter__, kind.__exit__
    kind.__enter__ = lambda self: None  # type: ignore[method-assign]
    kind.__exit__ = lambda self, *error: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave  # type: ignore[method-assign]


@contextmanager
def without_fastpath() -> Iterator[None]:
    """Switches off the fused transformer kernels, which call no submodules and so run no hooks."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Random numbers of torch, numpy and `random` from one seed; their generators continue afterwards as before."""
    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


@contextmanager
def stack_names(model: nn.Module, stack: list[str], listener: ModuleListener | None = None) -> Iterator[None]:
    """Keeps the names of running modules on `stack`, innermost last; after an error the last is the failing one."""

    def entered(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(name)
            if listener is not None:
                listener.entered(name)

        return hook

    def left(module: nn.Module, args: Any, output: Any) -> None:
        name = stack.pop()
        if listener is not None:
            listener.left(name, output)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(entered(name)).remove)
                hooks.callback(module.register_forward_hook(left).remove)
        yield
