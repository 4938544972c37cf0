"""Operators that compute a channel's result from several channels: reductions, softmax, normalisations."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.axes import Term, factor, fixed, freeze, unify
from prunecli.surgery.tracing.operators import Call, Rule

_ORDERED = "the order of its channels matters"


def _reduction(call: Call) -> None:
    """`mean`, `sum`, `var`, `amax` and the like over some or all dimensions."""
    x = call.args[0]
    dims = call.dims(x)
    gone = _reduced(call, x)
    if call.name in ("max", "min") and len(call.results) == 2:  # the second result is the position
        for dim in gone:
            freeze(dims[dim], _ORDERED)
    for result in call.results:
        if result.dim() == x.dim():
            call.set(result, [fixed(1) if dim in gone else term for dim, term in enumerate(dims)])
        else:
            call.set(result, [term for dim, term in enumerate(dims) if dim not in gone])


def _reduced(call: Call, x: Tensor) -> set[int]:
    if call.name in ("linalg_vector_norm", "norm"):
        reduced = call.arg(2, "dim")
    else:
        reduced = call.arg(1, "dim")
    if reduced is None or (isinstance(reduced, (list, tuple)) and not reduced):
        return set(range(x.dim()))
    listed = reduced if isinstance(reduced, (list, tuple)) else [reduced]
    return {dim % x.dim() for dim in listed if not isinstance(dim, bool)}


def _positions(call: Call) -> None:
    """`argmax` and the like give positions along a dimension, which therefore cannot shrink."""
    x = call.args[0]
    for dim in _reduced(call, x):
        freeze(call.dims(x)[dim], _ORDERED)
    _reduction(call)


def _softmax(call: Call) -> None:
    """Same dimensions; the one it normalises over loses its removed channels from the sum."""
    for result in call.results:
        call.set(result, call.dims(call.args[0]))


def _ordered(call: Call) -> None:
    """`cumsum`, `sort` and `topk` along a dimension, which therefore cannot shrink."""
    x = call.args[0]
    argument = 2 if call.name == "topk" else 1
    dim = call.arg(argument, "dim", -1)
    dim = (-1 if isinstance(dim, bool) else dim) % x.dim()
    dims = call.dims(x)
    freeze(dims[dim], _ORDERED)
    for result in call.results:
        changed = [
            term if term.size == size else fixed(size, _ORDERED) for term, size in zip(dims, result.shape, strict=True)
        ]
        call.set(result, changed)


def _batch_norm(call: Call) -> None:
    """Weight, bias and statistics belong to the channels in dimension 1."""
    x = call.args[0]
    dims = call.dims(x)
    per_channel = [t for t in call.tensors[1:] if t.dim() == 1 and t.shape[0] == x.shape[1]]
    for tensor in per_channel:
        unify(call.dims(tensor)[0], dims[1])
    call.set(call.results[0], dims)
    for other in call.results[1:]:
        call.set(other, [dims[1]] if list(other.shape) == [x.shape[1]] else [fixed(size) for size in other.shape])


def _layer_norm(call: Call) -> None:
    """Weight and bias belong to the last dimensions."""
    x = call.args[0]
    dims = call.dims(x)
    shape = call.args[1]
    for tensor in call.args[2:4]:
        if isinstance(tensor, Tensor):
            for term, other in zip(dims[-len(shape) :], call.dims(tensor), strict=True):
                unify(term, other)
    call.set(call.results[0], dims)
    for result in call.results[1:]:
        sizes = zip(dims, result.shape, strict=False)
        call.set(result, [term if term.size == size else fixed(size) for term, size in sizes])


def _group_norm(call: Call) -> None:
    """Groups of channels are normalised together: whole groups, or the same channels of every group."""
    x, weight, bias = call.args[:3]
    groups = int(call.args[6])
    dims = call.dims(x)
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            unify(call.dims(tensor)[0], dims[1])
    outer: Term = fixed(groups)
    if groups > 1:
        outer, _ = factor(dims[1], x.shape[1] // groups)
        call.known.followed.blocks[call.known.module] = outer
    call.set(call.results[0], dims)
    for other in call.results[1:]:
        call.set(other, [fixed(other.shape[0]), outer])


def _weight_norm(call: Call) -> None:
    """`v * g / ||v||`: the norm runs over all dimensions but one."""
    v, g = call.args[0], call.args[1]
    dims: list[Term] = call.dims(v)
    for term, other in zip(dims, call.dims(g), strict=True):
        if term.size == other.size:
            unify(term, other)
    call.set(call.results[0], dims)
    for result in call.results[1:]:
        call.set(result, call.dims(g))


_REDUCTIONS = (
    "mean", "sum", "nansum", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "prod", "logsumexp",
    "norm", "linalg_vector_norm", "all", "any", "aminmax",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("argmax", "argmin", "median", "mode"), _positions),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("cumsum", "cumprod", "sort", "argsort", "topk", "logcumsumexp"), _ordered),
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "_batch_norm_with_update",
            "batch_norm",
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "layer_norm"), _layer_norm),
    **dict.fromkeys(("native_group_norm", "group_norm"), _group_norm),
    "_weight_norm_interface": _weight_norm,
}

NEEDS_KEPT_ALONE = frozenset(RULES)
"""Operators that mix channels: zeros in place of removed channels would count, so they need the kept ones alone."""
