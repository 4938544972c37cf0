"""Refusing weights that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError
from prunecli.naming import option

_NAMED = 3
_AT_ONCE = 1 << 22


def check_finite(tensors: Mapping[str, Tensor], path: Path, allowed: bool) -> None:
    """Refuses weights that hold NaN or infinity.

    Args:
        tensors: Tensors by name.
        path: The file they came from, for the message.
        allowed: Whether to accept them anyway.

    Raises:
        ModelError: Some do; the first few are named.
    """
    if allowed:
        return
    bad: list[str] = []
    checked: dict[tuple[object, ...], bool] = {}  # tied tensors are checked once
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if view not in checked:
            checked[view] = _is_finite(tensor)
        if not checked[view]:
            bad.append(name)
    if bad:
        named = ", ".join(printable(name) for name in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        which = f"tensor {named} holds" if len(bad) == 1 else f"tensors {named}{more} hold"
        raise ModelError(
            f"{path}: {which} NaN or infinity, so the network is broken; fetch or train it again, or load it anyway "
            f"with {option('allow_nonfinite', True)}"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # torch has no test for eight-bit floats
        tensor = tensor.float()
    return all(bool(torch.isfinite(part).all()) for part in torch.split(tensor.reshape(-1), _AT_ONCE))
