"""`nn.RNN`, `nn.LSTM` and `nn.GRU` keep their hidden units: their states begin as zeros of that width."""

from __future__ import annotations

from torch import nn

from prunecli.surgery.axes import freeze
from prunecli.surgery.tracing.labels import HIDDEN, Followed


def tie(name: str, module: nn.Module, followed: Followed) -> None:
    """Freezes all dimensions but the columns that read the layer's input."""
    assert isinstance(module, nn.RNNBase)
    prefix = f"{name}." if name else ""
    for tensor in (tensor for layer in module.all_weights for tensor in layer):
        for parameter, owned in module.named_parameters(recurse=False):
            if owned is tensor:
                dims = followed.parameters[f"{prefix}{parameter}"].dims
                for term in dims[:1] if parameter.startswith("weight_ih_l0") else dims:
                    freeze(term, HIDDEN)
