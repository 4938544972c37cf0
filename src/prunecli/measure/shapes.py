"""What common operators return, but for the values: shape, dtype and strides, without computing.

The meta device gives the same, for every operator, but decides on it in Python code that is made for generality: a
batch normalisation takes it a millisecond. Here are the few operators that networks call most. Whatever is unusual
about a call, and every call that is wrong, is left to the operator itself.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_KNOWN = (torch.float32, torch.float64, torch.int64)
_LARGE = 1 << 18
"""Bytes for which a mapping of their own is worth it."""
_Arguments: TypeAlias = tuple[Any, ...]


class OnlyShapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets a network on the meta device run without torch's own code for shapes, where that is not needed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: _Arguments = (), kwargs: Any = None) -> Any:
        out = uncomputed(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if out is None else out


def uncomputed(func: Any, args: _Arguments, kwargs: Mapping[str, Any]) -> Any:
    """What an operator returns, with zeros for values; None where the operator has to be called.

    An operator that writes to its first argument returns that, unchanged.
    """
    rule = _RULES.get(func)
    return None if rule is None or kwargs else rule(func, args)


def _zeros(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor | None:
    """A contiguous tensor; large ones take no memory until something is written to them."""
    dtype = dtype or like.dtype
    if like.is_meta:
        return torch.empty(shape, dtype=dtype, device="meta")
    if like.device.type != "cpu" or dtype not in _KNOWN:
        return None
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(shape)


def _alike(x: Tensor) -> Tensor | None:
    """A tensor with the strides of another one; None where that has gaps or repeats."""
    if x.is_contiguous():
        return _zeros(x, x.shape)
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return None
        expected *= size
    flat = _zeros(x, (x.numel(),))
    return None if flat is None else flat.as_strided(x.shape, x.stride())


def _unary(func: Any, args: _Arguments) -> Any:
    x = args[0]
    if not x.is_floating_point() or any(not isinstance(other, (int, float, str, type(None))) for other in args[1:]):
        return None
    return x if func._schema.is_mutable else _alike(x)


def _binary(func: Any, args: _Arguments) -> Any:
    first, second = args[0], args[1]
    if len(args) != 2 or not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if not isinstance(second, Tensor):
        return _unary(func, args)
    if second.dtype != first.dtype or second.device != first.device:
        return None
    full = first if _fits(second.shape, first.shape) else second if _fits(first.shape, second.shape) else None
    if func._schema.is_mutable:
        return first if full is first else None
    # Strides are those of the first operand that has any along a dimension; of both, where they are alike.
    if full is None or full.dim() == 0:
        return None
    other = second if full is first else first
    if full.is_contiguous() and other.is_contiguous():
        return _alike(full)
    alike = other.numel() == 1 or (other.shape == full.shape and other.stride() == full.stride())
    return _alike(full) if full is first and alike else None


def _fits(shape: Sequence[int], into: Sequence[int]) -> bool:
    """Whether a tensor of one shape is repeated to the other when the two meet."""
    offset = len(into) - len(shape)
    return offset >= 0 and all(size in (1, into[offset + dim]) for dim, size in enumerate(shape))


def _convolution(func: Any, args: _Arguments) -> Any:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or x.dim() != weight.dim() or x.dtype != weight.dtype or 0 in x.shape:
        return None
    last = _is_channels_last(x)  # convolutions keep either format
    if not _is_row_major(weight) or not (_is_row_major(x) or (last and x.dtype == torch.float64)):
        return None
    if weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups or not _is_row(bias, weight.shape[0], x):
        return None
    sizes = _windows(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    if min(sizes, default=0) < 1:
        return None
    if not last:
        return _zeros(x, (x.shape[0], weight.shape[0], *sizes))
    rows = _zeros(x, (x.shape[0], *sizes, weight.shape[0]))
    return None if rows is None else rows.permute(0, 3, 1, 2)


def _is_row_major(x: Tensor) -> bool:
    """Whether the strides are those of a new tensor, also along dimensions of size 1."""
    expected = 1
    for stride, size in zip(reversed(x.stride()), reversed(x.shape), strict=True):
        if stride != expected:
            return False
        expected *= size
    return True


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and _is_row_major(x.permute(0, 2, 3, 1))


def _windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """How many positions a window has along each dimension."""

    def along(values: Sequence[int], dim: int) -> int:
        return values[dim] if len(values) > 1 else values[0]

    return [
        (size + 2 * along(padding, dim) - along(dilation, dim) * (along(kernel, dim) - 1) - 1) // along(stride, dim) + 1
        for dim, size in enumerate(sizes)
    ]


def _is_row(tensor: Tensor | None, width: int, like: Tensor) -> bool:
    return tensor is None or (tuple(tensor.shape) == (width,) and tensor.dtype == like.dtype)


def _batch_norm(func: Any, args: _Arguments) -> Any:
    x, weight, bias, mean, variance, training = args[:6]
    if not x.is_contiguous() or x.dim() < 2 or 0 in x.shape or x.dtype not in (torch.float32, torch.float64):
        return None
    width = x.shape[1]
    if not all(_is_row(tensor, width, x) for tensor in (weight, bias, mean, variance)):
        return None
    if x.numel() == width if training else mean is None or variance is None:
        return None
    saved = (width if training else 0,)
    return _together(_zeros(x, x.shape), _zeros(x, saved), _zeros(x, saved))


def _layer_norm(func: Any, args: _Arguments) -> Any:
    x, shape, weight, bias = args[:4]
    behind = x.dim() - len(shape)
    if 0 in x.shape or behind < 0 or list(x.shape[behind:]) != list(shape) or x.dtype not in _KNOWN:
        return None
    if any(tensor is not None and (tensor.shape != x.shape[behind:] or tensor.dtype != x.dtype)
           for tensor in (weight, bias)):  # fmt: skip
        return None
    rows = (*x.shape[:behind], *(1 for _ in shape))
    return _together(_zeros(x, x.shape), _zeros(x, rows), _zeros(x, rows))


def _together(*results: Tensor | None) -> tuple[Tensor | None, ...] | None:
    return None if any(result is None for result in results) else results


def _product(func: Any, args: _Arguments) -> Any:
    bias = args[0] if func in _BIASED else None
    a, b = args[-2:]
    if len(args) != (2 if bias is None else 3):  # scaled
        return None
    if a.dtype != b.dtype or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2] or not a.is_floating_point():
        return None
    shape = (*a.shape[:-1], b.shape[-1])
    if bias is not None and (bias.dtype != a.dtype or not _fits(bias.shape, shape)):
        return None
    return _zeros(a, shape) if math.prod(shape) else None


def _cat(func: Any, args: _Arguments) -> Any:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    first = tensors[0]
    if len(args) > 2 or not -first.dim() <= dim < first.dim():
        return None
    dim %= first.dim()
    for tensor in tensors:
        same = tensor.dtype == first.dtype and tensor.dim() == first.dim() and tensor.is_contiguous()
        if not same or any(
            one != other for at, (one, other) in enumerate(zip(tensor.shape, first.shape, strict=True)) if at != dim
        ):
            return None
    total = sum(tensor.shape[dim] for tensor in tensors)
    return _zeros(first, (*first.shape[:dim], total, *first.shape[dim + 1 :])) if first.dim() > 1 else None


def _max_pool(func: Any, args: _Arguments) -> Any:
    usual: _Arguments = ([], [0], [1], False)
    x, kernel, stride, padding, dilation, ceil = (*args, *usual[len(args) - 2 :])
    if ceil or x.dim() != 4 or not x.is_contiguous() or not x.is_floating_point():
        return None
    windows = [kernel[0], kernel[-1]]
    if any(2 * edge > size for edge, size in zip((padding[0], padding[-1]), windows, strict=True)):
        return None
    sizes = _windows(x.shape[2:], windows, stride or windows, padding, dilation)
    if min(sizes) < 1:
        return None
    shape = (*x.shape[:2], *sizes)
    return _together(_zeros(x, shape), _zeros(x, shape, torch.int64))


def _softmax(func: Any, args: _Arguments) -> Any:
    x = args[0]
    usual = x.is_contiguous() and not args[2] and x.dim() > 0 and x.is_floating_point()
    return _zeros(x, x.shape) if usual and -x.dim() <= args[1] < x.dim() else None


def _overloads(*names: str) -> list[Any]:
    return [getattr(getattr(_aten, name), overload) for name, _, overload in (name.partition(".") for name in names)]


_BIASED = frozenset((_aten.addmm.default, _aten.baddbmm.default))
_Rule = Callable[[Any, _Arguments], Any]
_RULES: dict[Any, _Rule] = {
    _aten.convolution.default: _convolution,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.cat.default: _cat,
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten._softmax.default: _softmax,
    **dict.fromkeys(_overloads("mm.default", "addmm.default", "bmm.default", "baddbmm.default"), _product),
    **dict.fromkeys(
        _overloads(
            *(f"{name}.default" for name in (
                "relu relu_ silu silu_ gelu hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ sigmoid "
                "sigmoid_ tanh tanh_ leaky_relu leaky_relu_ elu elu_ exp sqrt rsqrt neg clamp clamp_ clamp_min erf abs"
            ).split()),
            "pow.Tensor_Scalar", "mul.Scalar", "add.Scalar", "div.Scalar", "sub.Scalar",
        ),
        _unary,
    ),
    **dict.fromkeys(
        _overloads("add.Tensor", "add_.Tensor", "sub.Tensor", "mul.Tensor", "mul_.Tensor", "div.Tensor"), _binary
    ),
}  # fmt: skip
