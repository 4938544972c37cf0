"""What layers read and give, as rows: one for each position that is looked at."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.taps import counted_rows, is_flipped_linear

_CHECKED = 64
"""Positions at which it is checked what a layer computes."""
_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def is_solvable(module: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution over one or two dimensions with a weight of its own."""
    kinds = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or is_flipped_linear(module)
    return kinds and module._parameters.get("weight") is not None


def groups_of(module: nn.Module) -> int:
    """Groups of a convolution; 1 for other layers."""
    return module.groups if isinstance(module, _ConvNd) else 1


def weights_of(module: nn.Module) -> Tensor:
    """A layer's weights in float64 on the CPU, shape (groups, columns, outputs); columns are inputs, then taps."""
    weight: Any = module.weight
    weight = weight.detach().cpu().double()
    weight = weight.T if is_flipped_linear(module) else weight
    groups = groups_of(module)
    return weight.reshape(groups, len(weight) // groups, -1).mT  # type: ignore[no-any-return]


def set_weights(module: nn.Module, weights: Tensor) -> None:
    """Puts what `weights_of` returns back."""
    target: Any = module.weight
    rows = weights.mT.reshape(-1, weights.shape[1])
    rows = rows.T if is_flipped_linear(module) else rows
    with torch.no_grad():
        target.copy_(rows.reshape(target.shape))


def pair(
    module: nn.Module,
    inputs: Tensor,
    outputs: Tensor,
    attended: Tensor | None,
    most: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Rows of inputs and outputs of one layer at the same positions.

    Args:
        module: The layer.
        inputs: What it reads.
        outputs: What it, or the same layer with other weights, gives; its channels may be others.
        attended: Positions of texts that are no padding, or None; see `counted_rows`.
        most: So many rows are drawn of more.
        generator: For drawing.

    Returns:
        Inputs (groups, rows, columns) and outputs (rows, channels).
    """
    if not isinstance(module, _ConvNd):
        x, y = counted_rows(inputs, attended), counted_rows(outputs, attended)
        chosen = _drawn(len(x), most, generator).to(x.device)
        return x[chosen].unsqueeze(0), y[chosen]
    x, sample, row, column = _unfolded(module, inputs, most, generator)
    outputs = outputs.flatten(0, 1) if outputs.dim() > module.weight.dim() else outputs
    outputs = outputs.unsqueeze(-2) if isinstance(module, nn.Conv1d) else outputs
    return x.reshape(len(x), module.groups, -1).transpose(0, 1), outputs[sample, :, row, column]


def row_count(module: nn.Module, inputs: Tensor, attended: Tensor | None) -> int:
    """How many rows `pair` and `unfolded_inputs` draw from."""
    if not isinstance(module, _ConvNd):
        return len(counted_rows(inputs, attended))
    samples = math.prod(inputs.shape[: inputs.dim() - module.weight.dim() + 1])
    height, width = _places(module, inputs)
    return samples * height * width


def pass_over(count: int, most: int, generator: torch.Generator) -> None:
    """Leaves a generator as if rows had been drawn of so many, where another process draws them."""
    if count > most:
        torch.randperm(count, generator=generator)


def unfolded_inputs(module: _ConvNd, inputs: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """What a convolution reads at some of its positions, shape (rows, input channels * taps).

    Args:
        module: A convolution over one or two dimensions.
        inputs: What it reads.
        most: So many positions are drawn of more.
        generator: For drawing.
    """
    return _unfolded(module, inputs, most, generator)[0].flatten(1)


def _unfolded(
    module: _ConvNd, inputs: Tensor, most: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs at some positions, (rows, channels, taps), and the sample, row and column of each."""
    if inputs.dim() > module.weight.dim():  # all time steps at once
        inputs = inputs.flatten(0, 1)
    inputs = inputs.unsqueeze(-2) if isinstance(module, nn.Conv1d) else inputs
    padded = functional.pad(inputs, _padding_of(module), _PAD_MODES[module.padding_mode])
    (down, across), (kernel_h, kernel_w) = _two(module.stride), _two(module.kernel_size)
    dilation_h, dilation_w = _two(module.dilation)
    height, width = _places(module, inputs)
    chosen = _drawn(len(padded) * height * width, most, generator).to(inputs.device)
    sample, row, column = chosen // (height * width), chosen // width % height, chosen % width
    taps = [
        padded[sample, :, row * down + h * dilation_h, column * across + w * dilation_w]
        for h in range(kernel_h)
        for w in range(kernel_w)
    ]
    return torch.stack(taps, -1), sample, row, column


def _places(module: _ConvNd, inputs: Tensor) -> tuple[int, int]:
    """Rows and columns of what a convolution gives; one row for a convolution over one dimension."""
    left, right, top, bottom = _padding_of(module)
    over_one = len(module.kernel_size) == 1
    size = 1 if over_one else inputs.shape[-2], inputs.shape[-1]
    lengths = zip(
        (size[0] + top + bottom, size[1] + left + right),
        _two(module.stride),
        _two(module.kernel_size),
        _two(module.dilation),
        strict=True,
    )
    height, width = ((whole - dilation * (kernel - 1) - 1) // step + 1 for whole, step, kernel, dilation in lengths)
    return height, width


def _padding_of(module: _ConvNd) -> tuple[int, ...]:
    """Padding as `functional.pad` takes it: (left, right, top, bottom)."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):  # what torch itself reads then
        given: tuple[int, ...] = module.padding if isinstance(module.padding, tuple) else (module.padding,)
        sides = [each for one in reversed(given) for each in (one, one)]
    else:
        sides = module._reversed_padding_repeated_twice
    return (*sides, 0, 0)[:4]


def computes_products(module: nn.Module, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether a layer gave the products of its weights with the rows of what it read, and its bias.

    Layers of other packages may pad, scale or normalise by themselves, and inherit from torch's nevertheless.

    Args:
        module: The layer.
        inputs: What it read.
        outputs: What it gave.
    """
    if isinstance(module, _ConvNd) and outputs.dim() != inputs.dim():
        return False
    try:
        x, y = pair(module, inputs, outputs, None, _CHECKED, torch.Generator().manual_seed(0))
    except (IndexError, RuntimeError):
        return False
    given = (x.double().cpu() @ weights_of(module)).transpose(0, 1).flatten(1)
    bias = module._parameters.get("bias")
    given = given if bias is None else given + bias.detach().double().cpu()
    y = y.double().cpu()
    if y.shape != given.shape:
        return False
    precision = 1e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return bool((given - y).abs().max() <= precision * y.abs().max() + torch.finfo(torch.float32).tiny)


def by_group(outputs: Tensor, groups: int) -> Tensor:
    """Outputs (rows, channels) as (groups, rows, channels of a group)."""
    return outputs.reshape(len(outputs), groups, -1).transpose(0, 1)


def channel_dim(module: nn.Module, outputs: Tensor) -> int:
    """Which dimension of a layer's output has its channels."""
    if not isinstance(module, _ConvNd):
        return outputs.dim() - 1
    return 2 if outputs.dim() > module.weight.dim() else 1


def _two(lengths: tuple[int, ...]) -> tuple[int, int]:
    return (1, lengths[0]) if len(lengths) == 1 else (lengths[0], lengths[1])


def _drawn(count: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.arange(count) if count <= most else torch.randperm(count, generator=generator)[:most].sort().values
