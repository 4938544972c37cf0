"""Picking positions by index tensors."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.axes import Term, fixed, freeze, unify
from prunecli.surgery.tracing.operators import Call, Rule

PICKED = "its positions are picked by an index"


def index(call: Call) -> None:
    """`x[i, :, j]`: indexed dimensions have to stay, the index's own dimensions take their place."""
    x, indices = call.args[0], list(call.args[1])
    dims = call.dims(x)
    places = [place for place, value in enumerate(indices) if value is not None]
    tensors = [value for value in indices if value is not None]
    for place in places:
        freeze(dims[place], PICKED)
    result = call.results[0]
    if any(tensor.dtype.is_floating_point is False and tensor.dtype.__str__() == "torch.bool" for tensor in tensors):
        for term in dims:
            freeze(term, PICKED)
        call.set(result, [fixed(size, PICKED) for size in result.shape])
        return
    span = max(tensor.dim() for tensor in tensors)
    together = places == list(range(places[0], places[0] + len(places)))
    at = places[0] if together else 0
    rest = [term for place, term in enumerate(dims) if place not in places]
    shape = result.shape[at : at + span]
    picked: list[Term] = []
    for place, size in enumerate(shape):
        back = span - place
        found = [call.dims(t)[t.dim() - back] for t in tensors if t.dim() >= back and t.shape[t.dim() - back] == size]
        for other in found[1:]:
            unify(found[0], other)
        picked.append(found[0] if found else fixed(size))
    call.set(result, [*rest[:at], *picked, *rest[at:]])


def index_put(call: Call) -> None:
    """`x[i] = v`: nothing of the target may change width where it is indexed, and v is not followed."""
    x, indices = call.args[0], call.args[1]
    dims = call.dims(x)
    for place, value in enumerate(indices):
        if value is not None:
            freeze(dims[place], PICKED)
    for value in call.tensors:
        if value is not x:
            for term in call.dims(value):
                freeze(term, PICKED)
    for term in dims:
        freeze(term, PICKED)
    for result in call.results:
        if not any(result is tensor for tensor in call.tensors):
            call.set(result, dims)


def index_select(call: Call) -> None:
    """One dimension by a vector of indices."""
    x = call.args[0]
    dim = call.arg(1, "dim") % x.dim()
    dims = call.dims(x)
    freeze(dims[dim], PICKED)
    dims[dim] = call.dims(call.arg(2, "index"))[0]
    call.set(call.results[0], dims)


def gather(call: Call) -> None:
    """Positions along one dimension, chosen anew at every other position."""
    x, dim, where = call.args[0], call.arg(1, "dim"), call.arg(2, "index")
    dims, others = call.dims(x), call.dims(where)
    for place, (term, other) in enumerate(zip(dims, others, strict=True)):
        if place == dim % x.dim():
            freeze(term, PICKED)
        elif term.size == other.size:
            unify(term, other)
    call.set(call.results[0], others)


def scatter(call: Call) -> None:
    """Values written by index: nothing changes width."""
    for tensor in call.tensors:
        for term in call.dims(tensor):
            freeze(term, PICKED)
    for result in call.results:
        if not any(result is tensor for tensor in call.tensors) and isinstance(result, Tensor):
            call.set(result, [fixed(size, PICKED) for size in result.shape])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("index", "_unsafe_index"), index),
    **dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), index_put),
    "index_select": index_select,
    "gather": gather,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "masked_scatter"), scatter),
}
