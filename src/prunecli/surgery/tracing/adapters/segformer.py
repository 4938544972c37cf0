"""SegFormer (transformers) reshapes what the convolution that shortens keys and values writes to its input's width."""

from __future__ import annotations

from torch import nn

from prunecli.surgery.axes import unify
from prunecli.surgery.tracing.labels import Followed


def tie(name: str, module: nn.Module, followed: Followed) -> None:
    """The convolution keeps as many channels as come in."""
    label = followed.parameters.get(f"{name}.sequence_reduction.weight")
    if label is not None:
        unify(label.dims[0], label.dims[1])
