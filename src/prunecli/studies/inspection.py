"""What is known about a network without evaluating it: layers, widths, sparsity, manifest, lineage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunecli.checkpoint.io import TensorState, verify_checkpoint
from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError
from prunecli.measure.counts import module_macs
from prunecli.models.catalog import rebuild_dense
from prunecli.models.loading import LoadedModel

_NAMED = 8


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


@dataclass(frozen=True)
class Verified:
    """What has become of a checkpoint's bytes.

    Attributes:
        tensors: Every tensor, with whether it is what was written.
        sealed: Whether the header has a hash, which then is right; versions before there was one wrote none.
        problem: What is wrong in one line; None if nothing is.
    """

    tensors: tuple[TensorState, ...]
    sealed: bool
    problem: str | None


def verify_file(path: Path) -> Verified:
    """Compares every tensor of a checkpoint, and its header, with the recorded hashes.

    Raises:
        ModelError: The file is missing or no checkpoint of ours, or its header itself is damaged.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a checkpoint that prune wrote")
    manifest, tensors = verify_checkpoint(path)
    damaged = [tensor.name for tensor in tensors if not tensor.intact]
    problem = None
    if damaged:
        named = ", ".join(map(printable, damaged[:_NAMED]))
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        problem = f"{path}: damaged: {named}{more} ({len(damaged)} of {len(tensors)} tensors); get the file again"
    return Verified(tuple(tensors), bool(manifest.sha256), problem)


def _main_shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    tensor = weight if isinstance(weight, torch.Tensor) else next(module.parameters(recurse=False))
    return tuple(tensor.shape)
