"""Which kernels torch runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_mkldnn() -> Iterator[None]:
    """Recurrent layers as plain operators, not as one fused kernel that hides them and has no second derivative.

    `torch.backends.mkldnn.flags` does the same, but warns about a precision of GPUs each time.
    """
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)  # type: ignore[no-untyped-call]
