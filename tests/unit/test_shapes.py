"""Results without values look as those of the operators do, on the CPU and on the meta device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from prunecli.measure.shapes import _RULES, uncomputed
from prunecli.surgery.tracing.running import plain_kernels

_aten = torch.ops.aten


def _formats(x: Tensor) -> Iterator[Tensor]:
    """The same values with other strides: as they are, transposed, repeated, and for images channels last and gaps."""
    yield x
    yield x[:1].expand(*x.shape)
    if x.dim() > 1:
        yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if x.dim() == 4:
        yield x.contiguous(memory_format=torch.channels_last)
        yield x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        yield torch.cat([x, x], dim=3)[..., ::2]


def _images(dtype: torch.dtype) -> Iterator[Tensor]:
    for shape in ((2, 6, 5, 7), (1, 6, 1, 1), (1, 4, 3, 3)):
        yield from _formats(torch.randn(shape).to(dtype))


def _strides(x: Tensor) -> list[int]:
    """Strides that mean something."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1] if x.numel() else []


def _moved(value: Any) -> Any:
    if isinstance(value, list):
        return [_moved(item) for item in value]
    return value.to("meta") if isinstance(value, Tensor) else value


def _tensors(args: Any) -> list[Tensor]:
    flat = itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in args)
    return [value for value in flat if isinstance(value, Tensor)]


def _agrees(func: Any, *args: Any) -> bool:
    """Checks one call; whether there was a result without computing."""
    moved = tuple(_moved(value) for value in args)
    results = [uncomputed(func, args, {}), uncomputed(func, moved, {})]
    kept = all(a.stride() == b.stride() for a, b in zip(_tensors(args), _tensors(moved), strict=True))
    fresh = [value.clone() if func._schema.is_mutable and isinstance(value, Tensor) else value for value in args]
    try:
        with plain_kernels(), torch.no_grad():
            expected = func(*fresh)
    except Exception:
        assert all(result is None for result in results), f"{func} refuses this"
        return False
    for result in results[: 2 if kept else 1]:  # tensors with gaps lose them on the way
        assert (result is None) == (results[0] is None)
        if result is None:
            continue
        ones, others = ([each] if isinstance(each, Tensor) else each for each in (expected, result))
        for one, other in zip(ones, others, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), func
            assert func._schema.is_mutable or _strides(one) == _strides(other), func
    return results[0] is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_elementwise_operators(dtype: torch.dtype) -> None:
    seen = set()
    for func, rule in _RULES.items():
        name = func.__name__
        for x in _images(dtype):
            if rule.__name__ == "_unary":
                more = (2.0,) if "Scalar" in name else (0.1,) if name.startswith("clamp") else ()
                seen.add(func) if _agrees(func, x, *more) else None
            elif rule.__name__ == "_binary":
                others = [torch.randn(s).to(dtype) for s in ((1, 6, 1, 1), (6, 1, 1), (7,), (5, 7), (), (1, 1, 1, 7))]
                for other in (*_formats(torch.randn(x.shape).to(dtype)), *others, torch.ones(x.shape[-1:]).long(), 2.0):
                    seen.add(func) if _agrees(func, x, other) else None
                    if isinstance(other, Tensor) and not func._schema.is_mutable:
                        _agrees(func, other, x)
    assert seen == {func for func, rule in _RULES.items() if rule.__name__ in ("_unary", "_binary")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutions(dtype: torch.dtype) -> None:
    quick = 0
    for x, groups, kernel, stride, padding in itertools.product(_images(dtype), (1, 2, 6), (1, 3), (1, 2), (0, 1)):
        for inner in (x.shape[1] // groups, 2):
            for weight in _formats(torch.randn(12, inner, kernel, kernel).to(dtype)):
                for bias in (None, torch.randn(12).to(dtype), torch.randn(3).to(dtype)):
                    plain = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
                    quick += _agrees(_aten.convolution.default, x, weight, bias, *plain)
    assert quick > 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normalisations_and_pooling(dtype: torch.dtype) -> None:
    quick = 0
    for x in _images(dtype):
        for training in (True, False):
            short = [torch.rand(3).to(dtype) for _ in range(4)]  # the operator itself would read beyond their ends
            assert uncomputed(_aten.native_batch_norm.default, (x, *short, training, 0.1, 1e-5), {}) is None
            rows = [torch.rand(x.shape[1]).to(dtype) for _ in range(4)]
            quick += _agrees(_aten.native_batch_norm.default, x, *rows, training, 0.1, 1e-5)
            _agrees(_aten.native_batch_norm.default, x, None, None, None, None, training, 0.1, 1e-5)
        for shape in (list(x.shape[-1:]), list(x.shape[-2:]), [9]):
            weight = torch.randn(shape).to(dtype)
            quick += _agrees(_aten.native_layer_norm.default, x, shape, weight, weight, 1e-5)
        for window, padding, ceil in itertools.product(([2, 2], [3]), ([0, 0], [1]), (False, True)):
            quick += _agrees(_aten.max_pool2d_with_indices.default, x, window, [2, 2], padding, [1, 1], ceil)
        for dim in (0, 1, -1, 4):
            quick += _agrees(_aten._softmax.default, x, dim, False)
            for other in _formats(torch.randn(x.shape[0], 3, *x.shape[2:]).to(dtype)):
                quick += _agrees(_aten.cat.default, [x, other], dim)
    assert quick > 50


def test_products() -> None:
    quick = 0
    for a, b in itertools.product(_formats(torch.randn(3, 4)), (*_formats(torch.randn(4, 5)), torch.randn(3, 5))):
        quick += _agrees(_aten.mm.default, a, b)
        for bias in (torch.randn(shape) for shape in ((5,), (1, 5), (), (4,))):
            quick += _agrees(_aten.addmm.default, bias, a, b)
        for count in (2, 3):
            pair = a.expand(2, *a.shape), b.expand(count, *b.shape)
            quick += _agrees(_aten.bmm.default, *pair)
            quick += _agrees(_aten.baddbmm.default, torch.randn(1, 1, b.shape[1]), *pair)
    assert quick > 30


def test_zeros_take_no_other_device() -> None:
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    assert uncomputed(_aten.relu.default, (x,), {}) is None
    assert uncomputed(_aten.relu.default, (x.to("meta"),), {}).dtype == torch.bfloat16
