"""SegFormer's attention (transformers) reshapes what its reducing convolution writes to the width of its input."""

from __future__ import annotations

from torch import nn

from prunecli.surgery.axes import unify
from prunecli.surgery.follow import Followed


def tie(name: str, module: nn.Module, followed: Followed) -> None:
    """The reducing convolution keeps as many channels as come in."""
    label = followed.parameters.get(f"{name}.sr.weight")
    if label is not None:
        unify(label.dims[0], label.dims[1])
