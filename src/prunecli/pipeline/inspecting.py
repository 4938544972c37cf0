"""What is known about a network without evaluating it: layers, widths, sparsity, manifest, lineage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from prunecli.measure.counts import module_macs
from prunecli.models.catalog import rebuild_dense
from prunecli.models.loading import LoadedModel


@dataclass(frozen=True)
class LayerInfo:
    """One layer that holds parameters of its own.

    Attributes:
        name: Dotted name.
        kind: Class name.
        shape: Shape of its weight.
        dense_shape: The same in the dense architecture.
        params: Its parameters.
        zeros: How many of them are exactly zero.
        macs: Multiply-accumulates of one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dense_shape: tuple[int, ...]
    params: int
    zeros: int
    macs: int


def layers_of(loaded: LoadedModel, example: torch.Tensor) -> list[LayerInfo]:
    """Every layer with parameters, in the order of the model."""
    dense = dict(rebuild_dense(loaded.manifest.architecture).named_modules())
    macs = module_macs(loaded.model, example)
    layers = []
    for name, module in loaded.model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if not parameters:
            continue
        layers.append(
            LayerInfo(
                name=name,
                kind=type(module).__name__,
                shape=_main_shape(module),
                dense_shape=_main_shape(dense[name]),
                params=sum(parameter.numel() for parameter in parameters),
                zeros=sum(int((parameter.detach() == 0).sum()) for parameter in parameters),
                macs=macs.get(name, 0),
            )
        )
    return layers


def _main_shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    tensor = weight if isinstance(weight, torch.Tensor) else next(module.parameters(recurse=False))
    return tuple(tensor.shape)
