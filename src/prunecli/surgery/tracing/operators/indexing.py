"""Picking positions by index tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from prunecli.surgery.axes import Term, fixed, freeze, unify
from prunecli.surgery.tracing.operators import Call, Rule

_PICKED = "its positions are picked by an index"


def _index(call: Call) -> None:
    """`x[i, :, j]`: indexed dimensions cannot shrink; the dimensions of the index replace them."""
    x, indices = call.args[0], list(call.args[1])
    dims = call.dims(x)
    indexed = [dim for dim, value in enumerate(indices) if value is not None]
    tensors = [value for value in indices if value is not None]
    for dim in indexed:
        freeze(dims[dim], _PICKED)
    result = call.results[0]
    if any(tensor.dtype == torch.bool for tensor in tensors):
        for term in dims:
            freeze(term, _PICKED)
        call.set(result, [fixed(size, _PICKED) for size in result.shape])
        return
    span = max(tensor.dim() for tensor in tensors)
    together = indexed == list(range(indexed[0], indexed[0] + len(indexed)))
    at = indexed[0] if together else 0
    rest = [term for dim, term in enumerate(dims) if dim not in indexed]
    shape = result.shape[at : at + span]
    picked: list[Term] = []
    for dim, size in enumerate(shape):
        back = span - dim
        meeting = [call.dims(t)[t.dim() - back] for t in tensors if t.dim() >= back and t.shape[t.dim() - back] == size]
        for other in meeting[1:]:
            unify(meeting[0], other)
        picked.append(meeting[0] if meeting else fixed(size))
    call.set(result, [*rest[:at], *picked, *rest[at:]])


def _index_put(call: Call) -> None:
    """`x[i] = v`: nothing of the target may change width where it is indexed, and v is not followed."""
    x, indices = call.args[0], call.args[1]
    dims = call.dims(x)
    for dim, value in enumerate(indices):
        if value is not None:
            freeze(dims[dim], _PICKED)
    for value in call.tensors:
        if value is not x:
            for term in call.dims(value):
                freeze(term, _PICKED)
    for term in dims:
        freeze(term, _PICKED)
    for result in call.results:
        if not any(result is tensor for tensor in call.tensors):
            call.set(result, dims)


def _index_select(call: Call) -> None:
    """One dimension by a vector of indices."""
    x = call.args[0]
    dim = call.arg(1, "dim") % x.dim()
    dims = call.dims(x)
    freeze(dims[dim], _PICKED)
    dims[dim] = call.dims(call.arg(2, "index"))[0]
    call.set(call.results[0], dims)


def _gather(call: Call) -> None:
    """Positions along one dimension, chosen separately at each position of the others."""
    x, dim, where = call.args[0], call.arg(1, "dim"), call.arg(2, "index")
    dims, others = call.dims(x), call.dims(where)
    for position, (term, other) in enumerate(zip(dims, others, strict=True)):
        if position == dim % x.dim():
            freeze(term, _PICKED)
        elif term.size == other.size:
            unify(term, other)
    call.set(call.results[0], others)


def _scatter(call: Call) -> None:
    """Values written by index: nothing changes width."""
    for tensor in call.tensors:
        for term in call.dims(tensor):
            freeze(term, _PICKED)
    for result in call.results:
        if not any(result is tensor for tensor in call.tensors) and isinstance(result, Tensor):
            call.set(result, [fixed(size, _PICKED) for size in result.shape])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), _index_put),
    "index_select": _index_select,
    "gather": _gather,
    **dict.fromkeys(
        ("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "masked_scatter"), _scatter
    ),
}
