"""What the proofs share: how far two results may differ, and networks in which no constant hides a mistake."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.errors import VerificationError
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.widened import as_stored

TOLERANCE = 1e-9
"""Largest accepted difference relative to the largest output; a correct removal in float64 stays below 1e-12."""
SINGLE_TOLERANCE = 1e-4
"""The same for networks that only run in float32, or cast to it inside."""


class NotComparableError(VerificationError):
    """The original itself gives nothing that the pruned network could be compared with."""


def randomise(model: nn.Module) -> set[str]:
    """Replaces floating tensors with equal entries by draws from U(0.5, 1.5), in place, and returns their names.

    Scalar parameters are drawn too where they are zero, as the gates of a branch are initially.
    """
    gates = {name for name, parameter in model.named_parameters() if parameter.numel() == 1}
    generator = torch.Generator().manual_seed(0)
    changed: set[str] = set()
    drawn: set[int] = set()
    for name, tensor in state_tensors(model).items():
        if tensor.data_ptr() in drawn:  # the same tensor under another name
            changed.add(name)
            continue
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        values = as_stored(tensor)
        if not bool((values == values.flatten()[0]).all()):
            continue
        if tensor.numel() > 1 or (name in gates and not tensor.any()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            changed.add(name)
            drawn.add(tensor.data_ptr())
    return changed


def relative_difference(reference: Tensor, output: Tensor) -> float:
    """Largest absolute difference divided by the largest finite absolute reference.

    Raises:
        NotComparableError: The reference holds no finite number.
    """
    if not reference.is_floating_point() and not reference.is_complex():
        reference, output = reference.double(), output.double()
    finite = torch.isfinite(reference)
    if not bool(finite.any()):
        raise NotComparableError("the network's output is not finite, so nothing can be compared; check its weights")
    # Values that are not finite must be the same infinity, or NaN, in both.
    if not torch.equal(reference.isnan(), output.isnan()) or not torch.equal(
        reference[~finite].nan_to_num(0.0), output[~finite].nan_to_num(0.0)
    ):
        return float("inf")
    scale = max(float(reference[finite].abs().max()), torch.finfo(torch.float64).tiny)
    return float((reference[finite] - output[finite]).abs().nan_to_num(float("inf")).max()) / scale
