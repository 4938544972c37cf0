"""Convolutions and matrix products: where channels are written and read."""

from __future__ import annotations

from prunecli.surgery.axes import NOT_A_CHANNEL, Term, factor, fixed, freeze, product, unify
from prunecli.surgery.tracing.operators import Call, Rule, broadcast


def _convolution(call: Call) -> None:
    """`weight` is (out, in / groups, ...), or (in, out / groups, ...) when transposed."""
    x, weight, bias = call.args[0], call.args[1], call.args[2]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    inputs, kernel = call.dims(x), call.dims(weight)
    channels_at = x.dim() - weight.dim() + 1  # 0 for an image without a batch dimension
    rows, columns = kernel[0], kernel[1]
    group_in, block_in = factor(inputs[channels_at], x.shape[channels_at] // groups)
    written: Term
    if transposed:
        group_rows, block_rows = factor(rows, weight.shape[0] // groups)
        unify(group_rows, group_in)
        unify(block_rows, block_in)
        written = product((group_rows, columns))
    else:
        group_rows, _ = factor(rows, weight.shape[0] // groups)
        unify(columns, block_in)
        unify(group_rows, group_in)
        written = rows
    call.role(weight, 1 if transposed else 0, "producer")
    call.role(weight, 0 if transposed else 1, "consumer")
    if groups > 1:
        call.known.followed.blocks[call.known.module] = group_rows
    if bias is not None:
        unify(call.dims(bias)[0], written)
        call.role(bias, 0, "producer")
    result = call.results[0]
    for term in inputs[channels_at + 1 :]:
        freeze(term, NOT_A_CHANNEL)
    dims = [*inputs[:channels_at], written]
    call.set(result, [*dims, *(fixed(size) for size in result.shape[len(dims) :])])


def _matrix_product(call: Call) -> None:
    """`mm`, `bmm`, `mv` and `dot`, and the forms that add a bias first."""
    added = call.name in ("addmm", "baddbmm", "addmv", "addbmm")
    a, b = call.args[1:3] if added else call.args[:2]
    left, right = call.dims(a), call.dims(b)
    batched = a.dim() == 3
    inner_left, inner_right = left[-1], right[-2 if b.dim() > 1 else -1]
    unify(inner_left, inner_right)
    result = call.results[0]
    dims: list[Term] = []
    if batched:
        unify(left[0], right[0])
        dims.append(left[0])
        if call.known.of(a).source is None and call.known.of(b).source is None:
            call.known.followed.heads.append(left[0])
            call.known.followed.contracted.append(inner_left)
    dims += [left[-2]] if a.dim() > 1 else []
    dims += [right[-1]] if b.dim() > 1 else []
    for operand, read, write in ((a, -1, -2), (b, -2, -1)):
        if operand.dim() >= 2:
            call.role(operand, operand.dim() + read, "consumer")
            call.role(operand, operand.dim() + write, "producer")
    call.set(result, dims)
    if added:
        bias = call.args[0]
        broadcast(call, result, [result, bias])
        if bias.dim() == 1:
            call.role(bias, 0, "producer")


def _embedding(call: Call) -> None:
    """Rows of a table, picked by index."""
    table, index = call.args[0], call.args[1]
    call.role(table, 1, "producer")
    call.set(call.results[0], [*call.dims(index), call.dims(table)[1]])


def _outer_free(call: Call) -> None:
    """Distances between rows: the channels are read on both sides."""
    a, b = call.args[0], call.args[1]
    left, right = call.dims(a), call.dims(b)
    unify(left[-1], right[-1])
    call.set(call.results[0], [*left[:-1], right[-2]])


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_overrideable": _convolution,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"), _matrix_product),
    "embedding": _embedding,
    "_cdist_forward": _outer_free,
}
