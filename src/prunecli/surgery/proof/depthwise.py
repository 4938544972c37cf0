"""Depthwise convolutions in float64 as what they are: a weighted sum for each channel.

The CPU's kernel makes a matrix product of each channel, and on small maps does little else than begin and end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTION = torch.ops.aten.convolution.default
_MANY = 16
"""Channels from which on it pays."""
_FEW = 2_000_000
"""Numbers up to which the windows of all positions are written out."""
_PLAIN = (Tensor, nn.Parameter)


def applied(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of an operator."""
    if func is _CONVOLUTION and not kwargs and args[8] >= _MANY and _is_depthwise(args):
        return _weighted_sums(*args[:6])
    return func(*args, **kwargs)


def _is_depthwise(args: tuple[Any, ...]) -> bool:
    x, weight, _, _, _, _, transposed, _, groups = args
    if transposed or type(x) not in _PLAIN or type(weight) not in _PLAIN or x.dim() != 4 or weight.dim() != 4:
        return False
    single = tuple(weight.shape[:2]) == (groups, 1) and x.shape[1] == groups
    usual = x.dtype == weight.dtype == torch.float64 and x.is_contiguous() and weight.is_contiguous()
    return single and usual and 0 < x.numel() * weight[0].numel() <= _FEW


def _weighted_sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    count, channels = x.shape[:2]
    kernel = list(weight.shape[2:])
    height, width = (
        (x.shape[2 + dim] + 2 * padding[dim] - dilation[dim] * (kernel[dim] - 1) - 1) // stride[dim] + 1
        for dim in (0, 1)
    )
    windows = torch.ops.aten.im2col(x, kernel, dilation, padding, stride)
    windows = windows.view(count, channels, kernel[0] * kernel[1], height * width)
    sums = (windows * weight.reshape(1, channels, -1, 1)).sum(2)
    if bias is not None:
        sums += bias.view(1, -1, 1)
    result: Tensor = sums.view(count, channels, height, width)
    return result
