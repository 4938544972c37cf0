"""What the proofs share: how far two results may differ, and networks in which no constant hides a mistake."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
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


def consisting_of(pruned: nn.Module, expected: Mapping[str, Tensor], random: Container[str]) -> nn.Module:
    """The pruned network with the tensors that it has to consist of, in their precision, on the CPU.

    A copy of what it has instead would only cost memory, where networks are large.

    Args:
        pruned: The network; not changed.
        expected: A tensor for every name.
        random: Names whose values the original has in another form, and which are not compared.

    Raises:
        VerificationError: It has other tensors.
    """
    stand_ins: dict[int, Any] = {}
    tensors = (*pruned.named_parameters(remove_duplicate=False), *pruned.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        wanted = expected.get(name)
        if wanted is None or wanted.shape != tensor.shape:
            raise VerificationError(f"{name} of the pruned network has another shape than what is left of the original")
        if name not in random and not _equal(tensor.detach(), wanted):
            raise VerificationError(f"{name} of the pruned network is not what is left of the original")
        stand_in: Any = wanted
        if isinstance(tensor, nn.Parameter) and not isinstance(wanted, nn.Parameter):
            stand_in = nn.Parameter(wanted, requires_grad=tensor.requires_grad)
        stand_ins.setdefault(id(tensor), stand_in)
    result = copied(pruned, stand_ins).cpu().eval()
    dtypes = {tensor.dtype for tensor in expected.values() if tensor.is_floating_point()}
    return result.double() if torch.float64 in dtypes else result.float()  # what hooks compute, too


def _equal(tensor: Tensor, expected: Tensor) -> bool:
    stored = as_stored(expected)
    values = tensor.to(device="cpu", dtype=stored.dtype)
    return torch.equal(values, stored) or torch.allclose(values, stored, rtol=0, atol=0, equal_nan=True)


def in_turn(network: nn.Module) -> None:
    """Lets mixtures of transformers run their experts one after the other: grouped kernels know no float64."""
    for module in network.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "eager"


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
