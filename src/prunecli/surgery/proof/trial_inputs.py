"""Inputs to compare two networks on, made from those that were given.

Values are drawn from the given ones, so that what holds for them holds for the others: images stay images, logarithms
stay defined. Integers (indices, lengths) and tensors of a few values (masks) stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunecli.inputs import Inputs, map_tensors, output_tensors

_MANY_VALUES = 20_000
"""An input with at least this many values needs no more than the trials in evaluation and in training mode."""
_MORE = 4
"""More trials for inputs of fewer values."""
_FEW = 3
"""A floating tensor with so few distinct values is a mask or a constant, and one number may be a time or a scale."""


def drawn_like(inputs: Inputs, least: int) -> list[Inputs]:
    """Others drawn like the inputs: on a few numbers a channel may be zero by chance.

    Small inputs are cheap and test little, so there are more of them; none if nothing in them is drawn.

    Args:
        inputs: The given ones.
        least: How many to draw like large inputs.
    """
    generator = torch.Generator().manual_seed(0)
    size = sum(tensor.numel() for tensor in output_tensors(inputs) if _is_drawn(tensor))
    count = 0 if size == 0 else _MORE if size < _MANY_VALUES else least
    return [map_tensors(inputs, lambda tensor: _drawn(tensor, generator)) for _ in range(count)]


def drawn_samples(inputs: Inputs, count: int) -> Any:
    """A batch drawn like the inputs; with a `count` of 2 behind the inputs themselves: training compares samples."""
    generator = torch.Generator().manual_seed(1)
    if isinstance(inputs, list):
        drawn: Any = [map_tensors(item, lambda tensor: _drawn(tensor, generator)) for item in inputs]
        return drawn if count == 1 else [*inputs, *drawn]
    if count == 1:
        return map_tensors(inputs, lambda tensor: _drawn(tensor, generator))
    return map_tensors(
        inputs, lambda tensor: torch.cat([tensor, _drawn(tensor, generator)]) if tensor.dim() > 0 else tensor
    )


def reversed_tokens(inputs: Inputs) -> Inputs | None:
    """The inputs with the order of tokens reversed, for networks that read numbers; None if there are none."""

    def tokens(tensor: Tensor) -> bool:
        whole = tensor.dtype in (torch.int64, torch.int32) and tensor.dim() > 0
        return whole and len(torch.unique(tensor)) > _FEW

    if not any(tokens(tensor) for tensor in output_tensors(inputs)):
        return None
    turned: Inputs = map_tensors(inputs, lambda tensor: tensor.flip(-1) if tokens(tensor) else tensor)
    return turned


def _is_drawn(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and (_is_constant(tensor) or len(torch.unique(tensor)) > _FEW)


def _is_constant(tensor: Tensor) -> bool:
    """Whether it looks like a placeholder, such as `torch.zeros(1, 3, 224, 224)`, rather than a mask."""
    return tensor.dim() > 2 and bool((tensor == tensor.flatten()[0]).all()) if tensor.numel() else False


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not _is_drawn(tensor):
        return tensor
    if _is_constant(tensor):
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    values = tensor.flatten()
    return values[torch.randint(len(values), (len(values),), generator=generator)].reshape(tensor.shape)
