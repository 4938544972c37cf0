"""Code of well-known libraries that runs only elsewhere: without fused kernels, or when a network is exported.

Attributes that only such code reads hold widths as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn

_FUSED = ("fused_attn", "use_sdpa", "flash")
"""Switches of attention modules in timm, open_clip and others: the other branch multiplies and scales by itself."""
_EXPORTED = ("forward_split", "forward_export")
"""Methods that exporters put in the place of `forward`, as those of ultralytics do."""


@contextmanager
def without_fused_attention(model: nn.Module) -> Iterator[bool]:
    """Switches fused attention off; yields whether there was any."""
    switched = [(module, name) for module in model.modules() for name in _FUSED if vars(module).get(name) is True]
    for module, name in switched:
        module.__dict__[name] = False
    try:
        yield bool(switched)
    finally:
        for module, name in switched:
            module.__dict__[name] = True


@contextmanager
def as_exported(model: nn.Module) -> Iterator[bool]:
    """Puts the methods for export in place; yields whether there were any."""
    replaced = [
        (module, getattr(module, name)) for module in model.modules() for name in _EXPORTED if hasattr(module, name)
    ]
    before = {id(module): vars(module)["forward"] for module, _ in replaced if "forward" in vars(module)}
    for module, method in replaced:
        module.__dict__["forward"] = method
    try:
        yield bool(replaced)
    finally:
        for module, _ in replaced:
            module.__dict__.pop("forward", None)
            if id(module) in before:
                module.__dict__["forward"] = before[id(module)]


PATHS: tuple[Callable[[nn.Module], AbstractContextManager[bool]], ...] = (without_fused_attention, as_exported)
