"""Keeping attention's temperature when head dimensions are removed.

Scores are divided by sqrt(head_dim), by `scaled_dot_product_attention` itself or through an attribute. With a
smaller head_dim they would be divided by less, so the rows that write queries are multiplied by sqrt(new / old) and
such attributes follow the new head_dim, which leaves the result unchanged. Query normalisations are layers that write
queries, too. Spikes cannot be rescaled; where they are multiplied, the factor is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from prunecli.surgery.axes import Axis, Seq, Term, leaves, resolve
from prunecli.surgery.groups import ChannelGroup, Scale, Size, Width
from prunecli.surgery.tracing.labels import Followed, Label, Record
from prunecli.surgery.tracing.traced import Position, position_of

_POWERS = (-0.5, 0.5, -0.25, 0.25)
_WRITERS = (
    "addmm",
    "mm",
    "convolution",
    "native_layer_norm",
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
)
_SPIKES = ("ge", "gt", "le", "lt", "sign", "heaviside")
"""Comparisons: multiplying the input of one does not multiply its output."""
_VIEWS = ("view", "_unsafe_view", "_reshape_alias")
_MOVES = ("permute", "transpose", "t", "select", "slice", "unsqueeze", "squeeze", "expand", "split",
          "split_with_sizes", "unbind", "chunk", "unsafe_split", "unsafe_chunk")  # fmt: skip


def temperatures(
    followed: Followed, groups: Mapping[Axis, ChannelGroup], constant: frozenset[Position]
) -> tuple[list[Scale], list[Width], dict[str, list[int]]]:
    """Parameters to rescale and scale attributes to set, for every group of head dimensions.

    The third result says, for each of these groups, which operators of the run multiply by a power of head_dim.

    Args:
        followed: The network's run.
        groups: Groups by axis.
        constant: Positions of groups with a temperature that is a constant in the code.
    """
    made = _makers(followed)
    readers = _readers(followed)
    scales: dict[tuple[str, str, str], Scale] = {}
    widths: list[Width] = []
    factors: dict[str, list[int]] = {}
    position = {id(record): index for index, record in enumerate(followed.records)}
    for record in followed.records:
        if record.operator not in ("bmm", "baddbmm") or any(label.source is not None for label in record.inputs[-2:]):
            continue
        queries, keys = record.inputs[-2:]
        group = _group_in(queries.dims[2], groups)
        head_dim = queries.dims[2].size
        if group is None or position_of(group) in constant:
            continue
        multiplying = _scaling(record, head_dim, made, readers)
        if multiplying is None:
            continue
        paths = [path for path in (_path(queries, made), _path(keys, made)) if path]
        try:
            written = _written(_best(paths, readers), made) if paths else []
        except (RuntimeError, ValueError):  # written in a way that is not understood: verify decides
            written = []
        for module, tensor, dim, positions in written:
            scales.setdefault((group.name, module, tensor), Scale(group.name, module, tensor, dim, positions))
            factors.setdefault(group.name, []).append(position[id(multiplying)])
        if written:  # else a constant is not changed, and so neither is the temperature
            widths += _scale_attributes(followed, group, head_dim, record.module)
    return list(scales.values()), list({(w.module, w.attribute, w.path): w for w in widths}.values()), factors


def _makers(followed: Followed) -> dict[Label, Record]:
    made: dict[Label, Record] = {}
    for record in followed.records:
        for label in record.outputs:
            if label not in record.inputs:
                made.setdefault(label, record)
    return made


def _readers(followed: Followed) -> dict[Label, list[Record]]:
    readers: dict[Label, list[Record]] = {}
    for record in followed.records:
        for label in dict.fromkeys(record.inputs):
            readers.setdefault(label, []).append(record)
    return readers


def _main_input(record: Record) -> Label | None:
    computed = [label for label in record.inputs if label.source is None]
    return next((label for label in computed if label.from_input), computed[0] if computed else None)


def _scaling(
    product: Record, head_dim: int, made: Mapping[Label, Record], readers: Mapping[Label, list[Record]]
) -> Record | None:
    """The operator, if any, that multiplies by a power of head_dim between the writing layers and the softmax."""
    factors = [head_dim**power for power in _POWERS]

    def multiplies(record: Record) -> bool:
        return record.operator.rstrip("_") in ("mul", "div", "baddbmm") and any(
            math.isclose(value, factor, rel_tol=1e-5) for value in record.numbers for factor in factors
        )

    if multiplies(product):
        return product
    for operand in product.inputs[-2:]:
        label: Label | None = operand
        while label is not None and label in made and made[label].operator not in _WRITERS:
            if multiplies(made[label]):
                return made[label]
            label = _main_input(made[label])
    label = product.outputs[0]
    for _ in range(8):
        following = readers.get(label, [None])[0]
        if following is None or not following.outputs or following.operator in ("_softmax", "_safe_softmax"):
            return None
        if multiplies(following):
            return following
        label = following.outputs[0]
    return None


def _path(label: Label, made: Mapping[Label, Record]) -> list[tuple[Record, Label]]:
    """Operators from a tensor back to the layer that writes it, each with the result that is followed; else empty."""
    path: list[tuple[Record, Label]] = []
    while label in made:
        record = made[label]
        path.append((record, label))
        if record.operator in _SPIKES:
            return []
        if record.operator in _WRITERS or (
            record.operator == "mul" and any(operand.source and operand.learned for operand in record.inputs)
        ):
            return path
        following = _main_input(record)
        if following is None:
            break
        label = following
    return []


def _best(paths: list[list[tuple[Record, Label]]], readers: Mapping[Label, list[Record]]) -> list[tuple[Record, Label]]:
    """Queries, unless something else reads them too (a residual connection, a relative position) and keys are free."""

    def read_elsewhere(path: list[tuple[Record, Label]]) -> bool:
        return any(len(readers.get(label, ())) > 1 for _, label in path)

    return next((path for path in paths if not read_elsewhere(path)), paths[0])


def _written(path: list[tuple[Record, Label]], made: Mapping[Label, Record]) -> list[tuple[str, str, int, Tensor]]:
    """Weight and bias at the end of a path, with the positions of the written dimension that the tensor consists of."""
    writer = path[-1][0]
    dim = 1 if writer.operator == "convolution" or "batch_norm" in writer.operator else -1
    shape = [term.size for term in writer.outputs[0].dims]
    along = [shape[dim] if axis == dim % len(shape) else 1 for axis in range(len(shape))]
    moved = torch.arange(shape[dim]).reshape(along).expand(shape)
    for record, label in reversed(path[:-1]):
        output = record.outputs.index(label)
        if record.operator in _VIEWS:
            moved = moved.reshape([term.size for term in record.outputs[output].dims])
        elif record.operator in _MOVES:
            out = record.func(moved, *record.args[1:], **record.kwargs)
            moved = out if isinstance(out, Tensor) else out[output]
        else:
            moved = _as_wide(moved, [term.size for term in record.outputs[output].dims])
    positions = torch.unique(moved)
    rows = list(_parameters(writer, positions, made))
    for record, _ in path[:-1]:  # for some layouts a linear layer is a product and an addition
        for operand in record.inputs if record.operator.startswith("add") else ():
            if operand.source is not None and [term.size for term in operand.dims] == [shape[dim]]:
                module, _, tensor = operand.source[0].rpartition(".")
                rows.append((module, tensor, 0, positions))
    return rows


def _as_wide(index: Tensor, shape: list[int]) -> Tensor:
    """Positions after an operator that changes other dimensions, such as a concatenation of tokens."""
    if index.dim() != len(shape):
        raise ValueError(f"{index.dim()} dimensions became {len(shape)}")
    for dim, size in enumerate(shape):
        if index.shape[dim] != size:
            index = index.narrow(dim, 0, 1)
    return index.expand(shape)


def _parameters(
    writer: Record, positions: Tensor, made: Mapping[Label, Record]
) -> Iterator[tuple[str, str, int, Tensor]]:
    """Parameters of a writing operator that hold the positions, through a concatenation for biases put together."""
    for operand in writer.inputs:
        pieces = [(operand, 0)]
        if operand.source is None and not operand.from_input and operand in made and made[operand].operator == "cat":
            parts = made[operand].inputs
            starts = [sum(part.dims[0].size for part in parts[:count]) for count in range(len(parts))]
            pieces = list(zip(parts, starts, strict=True))
        for label, start in pieces:
            if label.source is None:
                continue
            name, behind = label.source
            module, _, tensor = name.rpartition(".")
            transposed = writer.operator in ("addmm", "mm") and len(behind) == 2
            dim = behind[1] if transposed else 0
            end = start + label.dims[1 if transposed else 0].size
            inside = positions[(positions >= start) & (positions < end)] - start
            if tensor not in ("running_mean", "running_var") and len(inside):
                yield module, tensor, dim, inside + label.starts.get(dim, 0)


def _group_in(term: Term, groups: Mapping[Axis, ChannelGroup]) -> ChannelGroup | None:
    """The group that the size of a dimension is proportional to, if there is exactly one."""
    resolved = resolve(term)
    if isinstance(resolved, Seq):
        return None
    inside = [groups[leaf] for leaf in leaves(resolved) if leaf in groups]
    return inside[0] if len(inside) == 1 else None


def _scale_attributes(followed: Followed, group: ChannelGroup, head_dim: int, module: str) -> Iterator[Width]:
    """Numbers equal to head_dim ** -0.5 that entered an operator of the module that multiplies queries and keys."""
    for (read, value), users in followed.uses.scalars.items():
        if module in users and math.isclose(value, head_dim**-0.5, rel_tol=1e-6):
            yield Width(read.module, read.attribute, read.path, Size("group", group.units, group.name), root=True)
