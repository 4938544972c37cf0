"""Gradients of the calibration loss by single weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.criteria.base import Calibration, OwnShare, Paired, total_loss
from prunecli.criteria.weights.base import MaskableWeight, by_name
from prunecli.errors import MethodError
from prunecli.ranks import summed_by_name

NO_GRADIENT = "the loss does not depend on it"


def probe_of(model: nn.Module, weights: Sequence[MaskableWeight]) -> tuple[nn.Module, Mapping[str, nn.Parameter]]:
    """A copy in evaluation mode, in single precision at least, where only `weights` need gradients; and these."""
    probe = copied(model).eval().requires_grad_(False)
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in probe.parameters()):
        probe = probe.float()  # small gradients are zero in half precision
    parameters = by_name(weights, probe)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return probe, parameters


def losses(probe: nn.Module, calibration: Calibration, method: str, data: Paired | None = None) -> Iterator[Tensor]:
    """The loss of every batch, summed over its samples.

    Args:
        probe: The network.
        calibration: Data and loss.
        method: For messages.
        data: Data in place of that of `calibration`, such as this process's share of it.

    Raises:
        MethodError: A batch has no labels, the network does not run on it, or the loss has no gradient.
    """
    for inputs, labels in (calibration if data is None else data).pairs():
        if labels is None:
            raise MethodError(f"{method} needs labels: calibrate on batches of (inputs, labels)")
        total = total_loss(probe, inputs, labels, calibration.loss)
        if not total.requires_grad:
            raise MethodError("the loss has no gradient: the network runs under no_grad; choose magnitude instead")
        yield total


def summed_gradients(
    probe: nn.Module, parameters: Mapping[str, nn.Parameter], calibration: Calibration, method: str
) -> dict[str, Tensor]:
    """Gradients of the loss over all batches in float64; parameters that it does not depend on are left out."""
    sums: dict[str, Tensor] = {}
    for total in losses(probe, calibration, method, OwnShare(calibration)):
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                values = gradient.detach().cpu().double()
                sums[name] = sums[name] + values if name in sums else values
    return summed_by_name(sums)
