"""Operators that compute a channel's result from several channels: reductions, softmax, normalisations."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.axes import Term, factor, fixed, freeze, unify
from prunecli.surgery.tracing.operators import Call, Rule, broadcast
from prunecli.surgery.tracing.operators.matrices import MATRIX_FUNCTIONS

_ORDERED = "the order of its channels matters"


def _reduction(call: Call) -> None:
    """`mean`, `sum`, `var`, `amax` and the like over some or all dimensions."""
    x = call.args[0]
    dims = call.dims(x)
    gone = _reduced(call, x)
    for result in call.results:
        if result.dim() == x.dim():
            call.set(result, [fixed(1) if dim in gone else term for dim, term in enumerate(dims)])
        else:
            call.set(result, [term for dim, term in enumerate(dims) if dim not in gone])
    if call.name in _POSITIONS and call.results:
        where = call.results[-1]  # `max` over all dimensions gives no positions, `argmax` nothing else
        if len(call.results) == 2 or call.name in ("argmax", "argmin"):
            call.known.if_read(where, [dims[dim] for dim in gone], _ORDERED)


def _reduced(call: Call, x: Tensor) -> set[int]:
    if call.name in ("linalg_vector_norm", "norm"):
        reduced = call.arg(2, "dim")
    else:
        reduced = call.arg(1, "dim")
    if reduced is None or (isinstance(reduced, (list, tuple)) and not reduced):
        return set(range(x.dim()))
    listed = reduced if isinstance(reduced, (list, tuple)) else [reduced]
    return {dim % x.dim() for dim in listed if not isinstance(dim, bool)}


def _ranked(call: Call) -> None:
    """The k-th smallest value along a dimension, which therefore cannot shrink."""
    x = call.args[0]
    dims = call.dims(x)
    dim = call.arg(2, "dim", -1) % x.dim()
    freeze(dims[dim], _ORDERED)
    for result in call.results:
        changed = [fixed(1)] if result.dim() == x.dim() else []
        call.set(result, [*dims[:dim], *changed, *dims[dim + 1 :]])


def _loss(call: Call) -> None:
    """A difference, position by position, and perhaps its mean."""
    result = call.results[0]
    terms = broadcast(call, call.tensors[0], call.tensors)
    call.set(result, terms if result.shape == call.tensors[0].shape else [fixed(size) for size in result.shape])


def _class_loss(call: Call) -> None:
    """The negative log-likelihood of a class, counted from the beginning."""
    scores, target = call.dims(call.args[0]), call.dims(call.args[1])
    classes = scores.pop(1 if call.args[0].dim() > 1 else 0)
    freeze(classes, _ORDERED)
    for term, other in zip(scores, target, strict=False):
        unify(term, other)
    for result in call.results:
        shape = [term.size for term in scores]
        call.set(result, scores if list(result.shape) == shape else [fixed(size) for size in result.shape])


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
    "norm", "linalg_vector_norm", "all", "any", "aminmax", "median", "nanmedian", "mode", "argmax", "argmin",
    "count_nonzero", "_is_all_true", "_is_any_true",
)  # fmt: skip

_POSITIONS = ("max", "min", "median", "nanmedian", "mode", "argmax", "argmin")
_LOSSES = ("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy",
           "binary_cross_entropy_with_logits", "dist")  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "renorm"), _softmax),
    **dict.fromkeys(("cumsum", "cumprod", "sort", "argsort", "topk", "logcumsumexp", "cummax", "cummin"), _ordered),
    "kthvalue": _ranked,
    **dict.fromkeys(_LOSSES, _loss),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _class_loss),
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

NEEDS_KEPT_ALONE = frozenset((*RULES, *MATRIX_FUNCTIONS, "masked_scatter"))
"""Operators that mix channels: zeros in place of removed channels would count, so they need the kept ones alone."""
