"""`nn.MultiheadAttention` takes the width of queries, keys and values from the width of its input."""

from __future__ import annotations

from torch import nn

from prunecli.surgery.axes import Term, cut, factor, unify
from prunecli.surgery.tracing.equations import Held
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.watched import Read


def tie(name: str, module: nn.Module, followed: Followed) -> None:
    """Heads and their dimensions are cut from as many channels as come in."""
    assert isinstance(module, nn.MultiheadAttention)
    packed = followed.parameters.get(f"{name}.in_proj_weight".lstrip("."))
    if packed is not None:
        rows, columns = packed.dims
        width, rest = columns, rows
        for _ in range(3):
            piece, rest = cut(rest, columns.size)
            unify(columns, piece)
        keys = values = columns
    else:
        q, k, v = (
            followed.parameters[f"{name}.{weight}".lstrip(".")].dims
            for weight in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )
        width, keys, values = q[1], k[1], v[1]
        for rows in (q[0], k[0], v[0]):
            unify(rows, width)
    heads, head_dim = factor(width, module.head_dim)
    widths: dict[str, Term] = {
        "embed_dim": width, "kdim": keys, "vdim": values, "num_heads": heads, "head_dim": head_dim
    }  # fmt: skip
    followed.held.update({Read(name, attribute): Held(term) for attribute, term in widths.items()})
