"""Convolutions and matrix products: where channels are written and read."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.axes import NOT_A_CHANNEL, Term, factor, fixed, freeze, product, unify
from prunecli.surgery.tracing.operators import Call, Rule, broadcast

_RUNS = "its positions are assigned to different matrices, run by run"


def connect(
    call: Call, channels: Term, weight: Tensor, bias: Tensor | None, groups: int, *, transposed: bool = False
) -> Term:
    """Ties a convolution's weight and bias to the channels it reads.

    Args:
        call: The operator.
        channels: The dimension that is read.
        weight: (out, in / groups, ...), or (in, out / groups, ...) when transposed.
        bias: (out,), or None.
        groups: Number of groups.
        transposed: Whether the weight is that of a transposed convolution.

    Returns:
        The channels that are written.
    """
    kernel = call.dims(weight)
    rows, columns = kernel[0], kernel[1]
    group_in, block_in = factor(channels, channels.size // groups)
    written: Term
    if transposed:
        group_rows, block_rows = factor(rows, rows.size // groups)
        unify(group_rows, group_in)
        unify(block_rows, block_in)
        written = product((group_rows, columns))
    else:
        group_rows, _ = factor(rows, rows.size // groups)
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
    return written


def _convolution(call: Call) -> None:
    """Batch and channels; dimensions of the image have sizes of their own afterwards."""
    x, weight, bias = call.args[0], call.args[1], call.args[2]
    inputs = call.dims(x)
    channels_at = x.dim() - weight.dim() + 1  # 0 for an image without a batch dimension
    written = connect(call, inputs[channels_at], weight, bias, int(call.args[8]), transposed=bool(call.args[6]))
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
    _note_roles(call, a, b)
    call.set(result, dims)
    if added:
        bias = call.args[0]
        broadcast(call, result, [result, bias])
        if bias.dim() == 1:
            call.role(bias, 0, "producer")


def _note_roles(call: Call, a: Tensor, b: Tensor) -> None:
    for operand, read, write in ((a, -1, -2), (b, -2, -1)):
        if operand.dim() >= 2:
            call.role(operand, operand.dim() + read, "consumer")
            call.role(operand, operand.dim() + write, "producer")


def _batch_sum(call: Call) -> None:
    """`addbmm`: a batch of matrix products, added up."""
    bias, a, b = call.args[:3]
    left, right = call.dims(a), call.dims(b)
    unify(left[0], right[0])
    unify(left[2], right[1])
    call.set(call.results[0], [left[1], right[2]])
    broadcast(call, call.results[0], [call.results[0], bias])


def _outer_sum(call: Call) -> None:
    """`addr`: the outer product of two vectors, added to a matrix."""
    bias, a, b = call.args[:3]
    call.set(call.results[0], [call.dims(a)[0], call.dims(b)[0]])
    broadcast(call, call.results[0], [call.results[0], bias])


def _three_factors(call: Call) -> None:
    """`_trilinear`, behind `nn.Bilinear`: three tensors are widened, multiplied and summed."""
    operands, widened, summed = call.args[:3], call.args[3:6], {int(dim) for dim in call.args[6]}
    rank = operands[0].dim() + len(widened[0])
    terms: list[Term] = [fixed(1)] * rank
    for operand, new in zip(operands, widened, strict=True):
        present = [dim for dim in range(rank) if dim not in new]
        for own, (dim, term) in enumerate(zip(present, call.dims(operand), strict=True)):
            call.role(operand, own, "consumer" if dim in summed else "producer")
            if term.size == 1:
                continue
            if terms[dim].size != 1:
                unify(terms[dim], term)
            terms[dim] = term
    call.set(call.results[0], [term for dim, term in enumerate(terms) if dim not in summed])


def _grouped_product(call: Call) -> None:
    """Matrix products of runs of rows (or columns) with a matrix for each; where runs end is in a tensor."""
    a, b = call.args[0], call.args[1]
    left, right, result = call.dims(a), call.dims(b), call.results[0]
    unify(left[-1], right[-2])
    _note_roles(call, a, b)
    if a.dim() == 3 and b.dim() == 3:
        unify(left[0], right[0])
        call.set(result, [left[0], left[1], right[2]])
        return
    in_runs = left[0] if b.dim() == 3 else right[1] if a.dim() == 3 else left[1]
    for term in (in_runs, *(dims[0] for dims in (left, right) if len(dims) == 3)):
        freeze(term, _RUNS)
    lead = [fixed(result.shape[0], _RUNS)] if result.dim() == 3 else []
    call.set(result, [*lead, left[-2], right[-1]])


def _embedding(call: Call) -> None:
    """Rows of a table, picked by index."""
    table, index = call.args[0], call.args[1]
    call.role(table, 1, "producer")
    call.set(call.results[0], [*call.dims(index), call.dims(table)[1]])


def _embedding_bag(call: Call) -> None:
    """Rows of a table, summed or averaged over bags."""
    table = call.args[0]
    call.role(table, 1, "producer")
    columns = call.dims(table)[1]
    for tensor in call.tensors:
        if tensor is not table:
            for term in call.dims(tensor):
                freeze(term, NOT_A_CHANNEL)
    for result in call.results:
        wide = result.dim() == 2 and result.shape[1] == table.shape[1]
        call.set(result, [fixed(result.shape[0]), columns] if wide else [fixed(size) for size in result.shape])


def _distances(call: Call) -> None:
    """Distances between rows: the channels are read on both sides."""
    a, b = call.args[0], call.args[1]
    left, right, result = call.dims(a), call.dims(b), call.results[0]
    unify(left[-1], right[-1])
    batch: list[Term] = []
    for first, second in zip(left[:-2], right[:-2], strict=True):  # expanded to the same sizes before
        unify(first, second)
        batch.append(first)
    call.set(result, [*batch, left[-2], right[-2]])


def _distances_within(call: Call) -> None:
    """Distances between all pairs of rows of one matrix."""
    freeze(call.dims(call.args[0])[0], NOT_A_CHANNEL)
    call.set(call.results[0], [fixed(call.results[0].shape[0])])


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_overrideable": _convolution,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv", "vdot"), _matrix_product),
    "embedding": _embedding,
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), _distances),
    "_pdist_forward": _distances_within,
    "_trilinear": _three_factors,
    "_grouped_mm": _grouped_product,
    "addbmm": _batch_sum,
    "addr": _outer_sum,
}
