"""Picking positions by index tensors, and writing to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunecli.surgery.axes import Term, fixed, freeze, is_fixed, unify
from prunecli.surgery.tracing.operators import Call, Rule

_PICKED = "its positions are picked by an index"
_COUNTED = "its entries are counted"
_SEARCHED = "it is searched, and positions in it are the result"


def _hold(terms: Sequence[Term], reason: str = _PICKED) -> None:
    for term in terms:
        freeze(term, reason)


def _picked(call: Call, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[list[Term], list[Term]]:
    """Dimensions of `x[indices]`, and those of them that come from the indices.

    Indexed dimensions of `x` are frozen. A mask counts as one index for each of its dimensions; they are frozen too.
    """
    dims = call.dims(x)
    rest: list[Term] = []
    places: list[int] = []
    shapes: list[list[Term]] = []
    dim = 0
    for value in indices:
        if value is None:
            rest.append(dims[dim])
            dim += 1
            continue
        masks = value.dtype in (torch.bool, torch.uint8)
        covered = value.dim() if masks else 1
        _hold(dims[dim : dim + covered])
        if masks:
            _hold(call.dims(value))
        shapes.append([fixed(int(value.count_nonzero()), _PICKED)] if masks else call.dims(value))
        places += range(dim, dim + covered)
        dim += covered
    rest += dims[dim:]
    together = places == list(range(places[0], places[0] + len(places)))
    at = places[0] if together else 0
    span = _broadcast(shapes)
    return [*rest[:at], *span, *rest[at:]], span


def _broadcast(shapes: Sequence[Sequence[Term]]) -> list[Term]:
    """Dimensions of indices that are broadcast together."""
    result: list[Term] = []
    for back in range(1, max(len(shape) for shape in shapes) + 1):
        present = [shape[-back] for shape in shapes if len(shape) >= back]
        wide = [term for term in present if term.size != 1]
        for other in wide[1:]:
            unify(wide[0], other)
        result.insert(0, wide[0] if wide else present[0])
    return result


def _index(call: Call) -> None:
    """`x[i, :, j]`: indexed dimensions cannot shrink; the dimensions of the index replace them."""
    dims, _ = _picked(call, call.args[0], call.args[1])
    call.set(call.results[0], dims)


def _index_put(call: Call) -> None:
    """`x[i] = v`: where nothing is indexed, v has the dimensions of x."""
    x, indices, values = call.args[:3]
    dims, span = _picked(call, x, indices)
    _hold(span)
    others = call.dims(values)
    for term, other in zip(reversed(dims), reversed(others), strict=False):
        if term.size == other.size:
            unify(term, other)
    _written(call, x)


def _written(call: Call, x: Tensor) -> None:
    for result in call.results:
        if result is not x:
            call.set(result, call.dims(x))


def _index_select(call: Call) -> None:
    """One dimension by a vector of indices."""
    x = call.args[0]
    dim = call.arg(1, "dim") % x.dim()
    dims = call.dims(x)
    where = call.arg(2, "index")
    index = call.dims(where)
    if _is_entry(call, where) and not is_fixed(dims[dim]) and dims[dim].size == index[0].size:
        unify(dims[dim], index[0])
    else:
        freeze(dims[dim], _PICKED)
    dims[dim] = index[0] if index else fixed(1)
    call.set(call.results[0], dims)


def _is_entry(call: Call, where: Tensor) -> bool:
    """Whether a recurrent cell picks its units of a state: of one that has the cell's own width it picks all."""
    source = call.known.of(where).source
    return source is not None and source[0] in call.known.followed.entries


def _gather(call: Call) -> None:
    """Positions along one dimension, chosen separately at each position of the others."""
    x, dim, where = call.args[0], call.arg(1, "dim"), call.arg(2, "index")
    dims, others = call.dims(x), call.dims(where)
    for position, (term, other) in enumerate(zip(dims, others, strict=True)):
        if position == dim % x.dim():
            freeze(term, _PICKED)
        elif term.size == other.size:
            unify(term, other)
        else:
            _hold((term, other))  # the first few positions
    call.set(call.results[0], others)


def _scatter(call: Call) -> None:
    """Values written along one dimension, to places chosen separately at each position of the others."""
    x, dim, where, values = call.args[0], call.arg(1, "dim"), call.arg(2, "index"), call.arg(3, "src")
    every = [call.dims(tensor) for tensor in (x, where, values) if isinstance(tensor, Tensor)]
    for position in range(x.dim()):
        meeting = [dims[position] for dims in every]
        if position == dim % x.dim() or len({term.size for term in meeting}) > 1:
            _hold(meeting)
        else:
            for other in meeting[1:]:
                unify(meeting[0], other)
    _written(call, x)


def _index_write(call: Call) -> None:
    """`index_add`, `index_copy`, `index_fill`: slices of one dimension are written, all others meet.

    What is added may shrink with its indices: a removed slice would add zeros.
    """
    x, values, index = call.args[0], call.arg(3, "source"), call.dims(call.arg(2, "index"))
    dim = call.arg(1, "dim") % x.dim()
    dims = call.dims(x)
    freeze(dims[dim], _PICKED)
    if not call.name.startswith("index_add") or not index:
        _hold(index)
    if isinstance(values, Tensor) and values.dim() == x.dim():
        for position, (term, other) in enumerate(zip(dims, call.dims(values), strict=True)):
            if position != dim:
                unify(term, other)
            elif index:
                unify(other, index[0])
            else:
                freeze(other, _PICKED)
    _written(call, x)


def _masked_scatter(call: Call) -> None:
    """Values written in order where a mask is true: whole rows, if the mask is the same along the last dimensions."""
    x, mask, values = call.args[:3]
    dims, others, masked = call.dims(x), call.dims(values), call.dims(mask)
    rows = 0
    for back in range(1, min(len(dims), len(others)) + 1):
        constant = mask.dim() < back or mask.shape[-back] == 1 or mask.stride(-back) == 0
        if not constant or dims[-back].size != others[-back].size:
            break
        unify(dims[-back], others[-back])
        if mask.dim() >= back and masked[-back].size == dims[-back].size:
            unify(dims[-back], masked[-back])
        rows = back
    for terms in (dims, others, masked):
        _hold(terms[: max(0, len(terms) - rows)])
    _written(call, x)


def _take(call: Call) -> None:
    """Positions of a flattened tensor."""
    _hold(call.dims(call.args[0]))
    call.set(call.results[0], call.dims(call.args[1]))


def _counted(call: Call) -> None:
    """`bincount`, `histc`, `repeat_interleave` by a tensor: every entry counts, so nothing changes width."""
    for tensor in call.tensors:
        _hold(call.dims(tensor), _COUNTED)
    for result in call.results:
        call.set(result, [fixed(size, _COUNTED) for size in result.shape])


def _searched(call: Call) -> None:
    """`bucketize`, `searchsorted`, `isin`: values are looked up one by one; where they are searched nothing shrinks."""
    values, sequence = (call.args[1], call.args[0]) if call.name == "searchsorted" else call.args[:2]
    for tensor in call.tensors:
        if tensor is not values:
            _hold(call.dims(tensor)[-1:] if call.name == "searchsorted" else call.dims(tensor), _SEARCHED)
    dims = call.dims(values) if isinstance(values, Tensor) else []
    if isinstance(sequence, Tensor) and call.name == "searchsorted" and sequence.dim() > 1:
        for term, other in zip(dims[:-1], call.dims(sequence)[:-1], strict=True):
            unify(term, other)
    call.set(call.results[0], dims)


def _drawn(call: Call) -> None:
    """`multinomial`: positions of the last dimension, drawn at random."""
    dims, result = call.dims(call.args[0]), call.results[0]
    freeze(dims[-1], _PICKED)
    call.set(result, [*dims[:-1], fixed(result.shape[-1], _PICKED)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    **dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), _index_put),
    "index_select": _index_select,
    "gather": _gather,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scatter),
    **dict.fromkeys(("index_add", "index_copy", "index_fill", "index_reduce"), _index_write),
    "masked_scatter": _masked_scatter,
    "take": _take,
    **dict.fromkeys(("bincount", "histc", "repeat_interleave"), _counted),
    **dict.fromkeys(("bucketize", "searchsorted", "isin"), _searched),
    "multinomial": _drawn,
}
