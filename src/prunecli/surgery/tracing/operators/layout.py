"""Operators that only move positions: views, transpositions, slices, concatenations, padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from prunecli.surgery.axes import (
    Axis,
    Seq,
    Term,
    cut,
    factor,
    fixed,
    freeze,
    is_fixed,
    product,
    reshape,
    resolve,
    sequence,
    strided,
    unify,
)
from prunecli.surgery.tracing.labels import PICKED
from prunecli.surgery.tracing.operators import Call, Rule

_GROUPS = "the number of groups that are shuffled is fixed"
_UNEQUAL = "pieces of equal width would become unequal"
_REORDERED = "its channels are reordered by position"


def _view(call: Call) -> None:
    """Any reshape of a contiguous tensor."""
    x, result = call.tensors[0], call.results[0]
    if x.numel() != result.numel():  # the same bytes as another type
        for term in call.dims(x):
            freeze(term, _REORDERED)
        call.set(result, [fixed(size, _REORDERED) for size in result.shape])
        return
    source = call.labels[0].source if x.shape == result.shape else None
    call.set(result, reshape(call.dims(x), result.shape), source)


def _permuted(call: Call, order: Sequence[int]) -> None:
    dims, source = call.dims(call.args[0]), call.known.of(call.args[0]).source
    order = [dim % len(dims) for dim in order]
    if source is not None:
        source = (source[0], tuple(source[1][dim] for dim in order))
    call.set(call.results[0], [dims[dim] for dim in order], source)


def _permute(call: Call) -> None:
    """Dimensions in a given order."""
    _permuted(call, call.arg(1, "dims"))


def _transpose(call: Call) -> None:
    """Two dimensions swapped; `t` swaps the only two."""
    count = call.args[0].dim()
    order = list(range(count))
    if call.name in ("t", "t_"):
        _permuted(call, order[::-1])
        return
    a, b = call.arg(1, "dim0") % count, call.arg(2, "dim1") % count
    order[a], order[b] = order[b], order[a]
    _permuted(call, order)


def _same_sizes(call: Call) -> None:
    """`squeeze` and `unsqueeze`: dimensions of size 1 come and go."""
    x, result = call.args[0], call.results[0]
    terms = [term for term in call.dims(x) if term.size != 1]
    source = call.known.of(x).source
    if source is not None:
        wide = [dim for dim, term in zip(source[1], call.dims(x), strict=True) if term.size != 1]
        source = (source[0], tuple(wide)) if len(wide) == result.dim() else None
    it = iter(terms)
    call.set(result, [fixed(1) if size == 1 else next(it) for size in result.shape], source)


def _expand(call: Call) -> None:
    """Dimensions of size 1 repeated."""
    x, result = call.args[0], call.results[0]
    dims = call.dims(x)
    offset = result.dim() - x.dim()
    terms: list[Term] = []
    for dim, size in enumerate(result.shape):
        old = dim - offset
        terms.append(dims[old] if old >= 0 and x.shape[old] == size else _grown(size))
    call.set(result, terms, call.known.of(x).source if x.shape == result.shape else None)


def _grown(size: int) -> Term:
    return Axis(size)  # copies of one position adapt to what they meet


def _slice(call: Call) -> None:
    """A range along one dimension."""
    x, result = call.args[0], call.results[0]
    dim = (call.arg(1, "dim", 0) or 0) % x.dim()
    start, step = call.arg(2, "start", 0) or 0, call.arg(4, "step", 1) or 1
    dims, size = call.dims(x), x.shape[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    if result.shape[dim] == size:
        call.set(result, dims, call.known.of(x).source)
        return
    length = (result.shape[dim] - 1) * step + 1
    if step == 1:
        dims[dim] = _span(dims[dim], start, start + length)
    else:
        dims[dim] = _strided_span(dims[dim], start, step, result.shape[dim])
    call.set(result, dims)


def _span(term: Term, start: int, end: int) -> Term:
    return cut(cut(term, end)[0], start)[1]


def _strided_span(term: Term, start: int, step: int, count: int) -> Term:
    if is_fixed(term):
        return fixed(count)
    if start < step and term.size == count * step:
        return strided(term, step)
    freeze(term, _REORDERED)
    return fixed(count, _REORDERED)


def _select(call: Call) -> None:
    """One position of a dimension, which therefore cannot shrink if the result is used for more than its shape."""
    x = call.args[0]
    dim = call.arg(1, "dim") % x.dim()
    dims = call.dims(x)
    picked, position = dims.pop(dim), call.arg(2, "index")
    call.set(call.results[0], dims)
    call.known.if_read(call.results[0], _before(picked, position % picked.size, from_end=position < 0), PICKED)


def _before(term: Term, position: int, *, from_end: bool) -> list[Term]:
    """Parts of a dimension that have to stay for a position to stay where it is, counted from one end."""
    resolved = resolve(term)
    if not isinstance(resolved, Seq):
        return [resolved]
    start, needed = 0, []
    for part in resolved.parts:
        if start + part.size > position if from_end else start <= position:
            needed.append(part)
        start += part.size
    return needed


def _split(call: Call) -> None:
    """`split`, `split_with_sizes`, `chunk` and `unsafe` forms."""
    x = call.args[0]
    dim = call.arg(2, "dim", 0) % x.dim()
    dims = call.dims(x)
    rest = dims[dim]
    pieces: list[Term] = []
    equal = len({result.shape[dim] for result in call.results}) == 1
    if equal and len(call.results) > 1:
        outer, inner = _halves(rest, call.results[0].shape[dim])
        if outer is not None and inner is not None:
            freeze(outer, PICKED)
            pieces = [inner] * len(call.results)
    if not pieces:
        for result in call.results:
            head, rest = cut(rest, result.shape[dim])
            pieces.append(head)
        if equal and not call.name.endswith("_with_sizes"):  # a number of pieces: code asks for equal ones again
            for other in pieces[1:]:
                _tie_counts(pieces[0], other)
    for result, piece in zip(call.results, pieces, strict=True):
        call.set(result, [*dims[:dim], piece, *dims[dim + 1 :]])


def _halves(term: Term, size: int) -> tuple[Term | None, Term | None]:
    """Factors an unsplit dimension, so that equal pieces lose the same channels and keep equal widths."""
    resolved = resolve(term)
    if isinstance(resolved, Axis) and resolved.reason is None:
        return factor(resolved, size)
    return None, None


def _tie_counts(first: Term, second: Term) -> None:
    """Lets two pieces lose equally many channels: their parts that may shrink are tied in order, in equal lengths."""
    free = [[part for part in _parts(term) if not is_fixed(part)] for term in (first, second)]
    for one, other in zip_longest(*free):
        size = min(term.size if term is not None else 0 for term in (one, other))
        heads = []
        for term in (one, other):
            if term is not None:
                head, rest = cut(term, size)
                freeze(rest, _UNEQUAL)
                heads.append(head)
        if size:
            unify(*heads)


def _parts(term: Term) -> tuple[Term, ...]:
    resolved = resolve(term)
    return resolved.parts if isinstance(resolved, Seq) else (resolved,)


def _glu(call: Call) -> None:
    """The first half of a dimension times the sigmoid of the second."""
    x = call.args[0]
    dim = call.arg(1, "dim", -1) % x.dim()
    dims = call.dims(x)
    outer, dims[dim] = factor(dims[dim], x.shape[dim] // 2)
    freeze(outer, PICKED)
    call.set(call.results[0], dims)


def _unbind(call: Call) -> None:
    """All positions of a dimension as separate tensors."""
    x = call.args[0]
    dim = call.arg(1, "dim", 0) % x.dim()
    dims = call.dims(x)
    freeze(dims.pop(dim), PICKED)
    for result in call.results:
        call.set(result, dims)


def _cat(call: Call) -> None:
    """Dimensions one after another; all others meet."""
    # torch leaves empty vectors out whatever the others look like; a detector may have nothing else.
    tensors = [tensor for tensor in call.args[0] if tensor.dim() > 1 or tensor.numel() > 0] or call.args[0]
    dim = call.arg(1, "dim", 0) % tensors[0].dim()
    every = [call.dims(tensor) for tensor in tensors]
    dims = list(every[0])
    for other in every[1:]:
        for position, term in enumerate(other):
            if position != dim:
                unify(dims[position], term)
    dims[dim] = sequence(terms[dim] for terms in every)
    call.set(call.results[0], dims)


def _stack(call: Call) -> None:
    """Tensors along a new dimension."""
    tensors = call.args[0]
    result = call.results[0]
    dim = call.arg(1, "dim", 0) % result.dim()
    every = [call.dims(tensor) for tensor in tensors]
    for other in every[1:]:
        for a, b in zip(every[0], other, strict=True):
            unify(a, b)
    dims = list(every[0])
    dims.insert(dim, fixed(len(tensors)))
    call.set(result, dims)


def _reordered(call: Call) -> None:
    """`flip` and `roll`: the dimensions they act on keep their positions."""
    x = call.args[0]
    dims = call.dims(x)
    touched = call.arg(2, "dims", ()) if call.name == "roll" else call.arg(1, "dims", ())
    for dim in touched or range(x.dim()):
        freeze(dims[dim], _REORDERED)
    call.set(call.results[0], dims)


def _pad(call: Call) -> None:
    """Constant padding along any dimension; what is padded may shrink, whatever the constant is."""
    x, result = call.args[0], call.results[0]
    amounts = list(call.arg(1, "pad"))
    dims = call.dims(x)
    for pair in range(len(amounts) // 2):
        before, after = amounts[2 * pair], amounts[2 * pair + 1]
        at = x.dim() - 1 - pair
        if before or after:
            inner = _span(dims[at], -before if before < 0 else 0, x.shape[at] + min(after, 0))
            reason = "its padding has a constant width"
            dims[at] = sequence((fixed(max(before, 0), reason), inner, fixed(max(after, 0), reason)))
    call.set(result, dims)


def _restrided(call: Call) -> None:
    """`as_strided_` to the same shape only changes the memory format (average pooling to 1 x 1 does it)."""
    x, result = call.args[0], call.results[0]
    if result is x:
        return
    for term in call.dims(x):
        freeze(term, _REORDERED)
    call.set(result, [fixed(size, _REORDERED) for size in result.shape])


def _slice_scatter(call: Call) -> None:
    """A tensor with a range along one dimension replaced."""
    x, value, result = call.args[0], call.args[1], call.results[0]
    dims = call.dims(x)
    dim, size = call.arg(2, "dim", 0) % x.dim(), x.shape[call.arg(2, "dim", 0)]
    start = call.arg(3, "start") or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    for at, (term, other) in enumerate(zip(dims, call.dims(value), strict=True)):
        if at != dim:
            unify(term, other)
        elif call.arg(5, "step", 1) == 1:
            unify(_span(term, start, start + other.size), other)
        else:
            freeze(term, _REORDERED)
            freeze(other, _REORDERED)
    call.set(result, dims)


def _select_scatter(call: Call) -> None:
    """A tensor with one position of a dimension replaced."""
    x = call.args[0]
    dims = call.dims(x)
    others = list(dims)
    freeze(others.pop(call.arg(2, "dim")), PICKED)
    for term, other in zip(others, call.dims(call.args[1]), strict=True):
        unify(term, other)
    call.set(call.results[0], dims)


def _rotated(call: Call) -> None:
    """`rot90`: two dimensions keep their positions."""
    dims, result = call.dims(call.args[0]), call.results[0]
    for dim in call.arg(2, "dims", (0, 1)):
        freeze(dims[dim], _REORDERED)
        dims[dim] = fixed(result.shape[dim], _REORDERED)
    call.set(result, dims)


def _repeat(call: Call) -> None:
    """Whole copies along every dimension."""
    x, result = call.args[0], call.results[0]
    repeats = list(call.arg(1, "repeats"))
    dims: list[Term] = [fixed(1)] * (len(repeats) - x.dim()) + call.dims(x)
    terms: list[Term] = []
    for count, term in zip(repeats, dims, strict=True):
        terms.append(term if count == 1 else (_grown(count) if term.size == 1 else product((fixed(count), term))))
    call.set(result, terms)


def _windows(call: Call) -> None:
    """`unfold` along one dimension."""
    x, result = call.args[0], call.results[0]
    dim = call.arg(1, "dimension") % x.dim()
    dims = call.dims(x)
    freeze(dims[dim], _REORDERED)
    dims[dim] = fixed(result.shape[dim])
    call.set(result, [*dims, fixed(result.shape[-1])])


def _channel_shuffle(call: Call) -> None:
    """(groups, C / groups) transposed within the channel dimension."""
    x, result = call.args[0], call.results[0]
    dims = call.dims(x)
    outer, inner = factor(dims[1], x.shape[1] // int(call.arg(1, "groups")))
    freeze(outer, _GROUPS)
    call.set(result, [dims[0], product((inner, outer)), *dims[2:]])


_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "view_copy")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_VIEWS, _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t", "swapaxes"), _transpose),
    **dict.fromkeys(("squeeze", "unsqueeze"), _same_sizes),
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(
        ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk"), _split
    ),
    "glu": _glu,
    "unbind": _unbind,
    **dict.fromkeys(("cat", "concat"), _cat),
    "stack": _stack,
    **dict.fromkeys(("flip", "roll"), _reordered),
    "constant_pad_nd": _pad,
    "as_strided": _restrided,
    "repeat": _repeat,
    "unfold": _windows,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "rot90": _rotated,
    "channel_shuffle": _channel_shuffle,
    "native_channel_shuffle": _channel_shuffle,
}
