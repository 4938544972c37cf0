"""Calling a model whatever its inputs and outputs look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""One tensor, positional tensors, or keyword tensors."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Runs `model` on `inputs`."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def cast_inputs(inputs: Inputs, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Inputs:
    """Moves inputs to `device`; floating ones also to `dtype`."""

    def one(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

    if isinstance(inputs, Tensor):
        return one(inputs)
    if isinstance(inputs, Mapping):
        return {name: one(tensor) for name, tensor in inputs.items()}
    return tuple(one(tensor) for tensor in inputs)


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in a model's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in output_tensors(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in output_tensors(value)]
    return []


def logits(output: Any) -> Tensor:
    """The class scores in a model's output: the tensor itself, `.logits`, or the first tensor of several."""
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if isinstance(found, Tensor):
        return found
    return output_tensors(output)[0]


def model_device(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def summing_dtype(tensor: Tensor) -> torch.dtype:
    """What to add many ones up in: float64, where the device has it; float32 stops counting at 2^24."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def doubled_batch(inputs: Inputs) -> Inputs:
    """Every tensor twice along its first dimension: batch normalisation cannot train on one value."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    if isinstance(inputs, Mapping):
        return {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    return tuple(torch.cat([tensor, tensor]) for tensor in inputs)
