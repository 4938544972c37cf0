"""Depthwise convolutions as weighted sums."""

from __future__ import annotations

import pytest
import torch

from prunecli.surgery.proof import depthwise
from prunecli.surgery.tracing.running import plain_kernels

_CONVOLUTION = torch.ops.aten.convolution.default


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), [1, 1], [1, 1], [1, 1]),
        ((5, 3), [2, 1], [2, 0], [1, 2]),
        ((1, 1), [2, 2], [0, 0], [1, 1]),
        ((7, 7), [1, 1], [3, 3], [1, 1]),
    ],
)
def test_they_are_convolutions(
    kernel: tuple[int, int], stride: list[int], padding: list[int], dilation: list[int], bias: bool
) -> None:
    x, weight = torch.randn(2, 24, 9, 7, dtype=torch.float64), torch.randn(24, 1, *kernel, dtype=torch.float64)
    added = torch.randn(24, dtype=torch.float64) if bias else None
    args = (x, weight, added, stride, padding, dilation, False, [0, 0], 24)
    with plain_kernels():
        expected = _CONVOLUTION(*args)
    found = depthwise._weighted_sums(*args[:6])
    assert depthwise._is_depthwise(args)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize("groups", [1, 8])
def test_others_are_left_to_torch(groups: int) -> None:
    x, weight = torch.randn(2, 16, 5, 5, dtype=torch.float64), torch.randn(16, 16 // groups, 3, 3, dtype=torch.float64)
    args = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], groups)
    assert not depthwise._is_depthwise(args)
    assert torch.equal(depthwise.applied(_CONVOLUTION, args, {}), _CONVOLUTION(*args))
