"""`nn.MultiheadAttention` takes the width of queries, keys and values from the width of its input."""

from __future__ import annotations

from torch import nn

from prunecli.surgery.axes import factor, unify
from prunecli.surgery.tracing.labels import Followed


def tie(name: str, module: nn.Module, followed: Followed) -> None:
    """Heads and their dimensions are cut from as many channels as come in."""
    packed = followed.parameters.get(f"{name}.in_proj_weight")
    if packed is not None:
        rows, columns = packed.dims
        unify(columns, factor(rows, columns.size)[1])
        return
    for weight in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        label = followed.parameters[f"{name}.{weight}"]
        unify(label.dims[0], followed.parameters[f"{name}.q_proj_weight"].dims[1])
