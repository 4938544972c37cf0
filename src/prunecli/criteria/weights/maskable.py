"""Which weights may be masked, and why others are left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.criteria.weights.base import MaskableWeight
from prunecli.inputs import Inputs, call, fitted, output_tensors
from prunecli.measure.counts import may_multiply
from prunecli.modes import evaluating
from prunecli.surgery.taps import experts_begin_with_inputs, is_layer
from prunecli.surgery.tracing.running import without_fastpath

_COMPUTED = "its weight is computed from other tensors (a parametrisation), so zeros in these would not be zeros in it"
_CHANGED = "its weight is changed before it is used, so a zero would not stay one"
_UNUSED = "never called in the forward pass"
_EMPTY = "all of its weights are zero already"
_SINGLE = "a single weight"
_TYPE = "its weights are not real numbers"
_SHARED_MEMORY = "shares its memory with another parameter"
NETWORK = "(network)"
"""What the outermost module is called in reasons."""
_STACKED = 3
"""Dimensions of weights with an entry for every expert."""
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass
class Maskable:
    """What was found.

    Attributes:
        weights: Those that may be masked, in the network's order; a tied one once.
        reasons: By module name, why its weights are left alone.
    """

    weights: list[MaskableWeight] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


def find_maskable(model: nn.Module, example: Inputs, kept: Callable[[str], str | None]) -> Maskable:
    """Finds all weights of convolutions and linear layers, and input projections of attention.

    The network runs once: a weight counts if a product reads it as it is.

    Args:
        model: Not changed.
        example: Inputs that it accepts.
        kept: Returns the pattern by which a module stays dense, if any.
    """
    found = Maskable()
    called, read = _run(model, example)
    owners = _owners(model)
    storages = Counter(parameter.untyped_storage().data_ptr() for parameter in model.parameters())
    for name, module in model.named_modules():
        reason = _why_no_layer(module)
        if reason is not None:
            found.reasons[name or NETWORK] = reason
            continue
        for leaf in _leaves(module):
            parameter = module._parameters[leaf]
            assert parameter is not None
            holders = owners[id(parameter)]
            if holders[0] != (name, True) and holders[0][1]:
                continue  # tied to one that came before
            names = tuple(dict.fromkeys(holder for holder, layer in holders if layer))
            reason = _why_not(parameter, holders, kept)
            if reason is None and storages[parameter.untyped_storage().data_ptr()] > 1:
                reason = _SHARED_MEMORY
            if reason is None and parameter.untyped_storage().data_ptr() not in read:
                reason = _CHANGED if called & set(names) else _UNUSED
            if reason is None:
                full = f"{name}.{leaf}" if name else leaf
                found.weights.append(MaskableWeight(full, names, module, parameter))
            else:
                found.reasons |= dict.fromkeys((holder or NETWORK for holder in names), reason)
    return found


def _leaves(module: nn.Module) -> list[str]:
    """Parameters of a layer that may be masked."""
    if experts_begin_with_inputs(module) is not None:
        return [name for name, tensor in module._parameters.items() if tensor is not None and tensor.dim() == _STACKED]
    names = _ATTENTION if isinstance(module, nn.MultiheadAttention) else ("weight",)
    layer = is_layer(module) or isinstance(module, nn.MultiheadAttention)
    return [name for name in names if layer and module._parameters.get(name) is not None]


def _why_no_layer(module: nn.Module) -> str | None:
    """Why a module with parameters of its own has none to mask; None also for a module without parameters."""
    if isinstance(module, ParametrizationList) or _leaves(module):
        return None
    if is_layer(module):
        return _COMPUTED
    if not any(parameter is not None for parameter in module._parameters.values()):
        return None
    kind = type(module).__name__
    if "Norm" in kind:
        return "a normalisation"
    return "an embedding" if "Embedding" in kind else f"no convolution or linear layer ({kind})"


def _owners(model: nn.Module) -> dict[int, list[tuple[str, bool]]]:
    """For every parameter the modules that hold it, and whether they are layers whose weight it is."""
    owners: dict[int, list[tuple[str, bool]]] = {}
    for name, module in model.named_modules():
        weights = _leaves(module)
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((name, leaf in weights))
    return owners


def _why_not(
    parameter: nn.Parameter, holders: Sequence[tuple[str, bool]], kept: Callable[[str], str | None]
) -> str | None:
    for name, layer in holders:
        if not layer:
            return f"shared with {name or 'the network'}, which is not masked"
        pattern = kept(name)
        if pattern is not None:
            return f"kept by pattern {pattern!r}"
    if nn.parameter.is_lazy(parameter):
        return _UNUSED
    if not parameter.is_floating_point():
        return _TYPE
    if parameter.numel() < 2:
        return _SINGLE
    return None if bool(parameter.detach().any()) else _EMPTY


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which memory products read; a view of a weight has that of the weight."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if may_multiply(func):
            self.storages |= {tensor.untyped_storage().data_ptr() for tensor in output_tensors(args)}
        return func(*args, **(kwargs or {}))


def _run(model: nn.Module, example: Inputs) -> tuple[set[str], set[int]]:
    """Names of the modules that run, and the memory that products read."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _m, _a, name=name: called.add(name))
        for name, module in model.named_modules()
    ]
    reads = _Reads()
    try:
        with torch.no_grad(), evaluating(model), without_fastpath(), reads:
            call(model, fitted(example, model))
    finally:
        for hook in hooks:
            hook.remove()
    return called, reads.storages
