"""Connection sensitivity, after Lee et al. (SNIP: Single-Shot Network Pruning, ICLR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod
from prunecli.criteria.weights.gradients import NO_GRADIENT, probe_of, summed_gradients
from prunecli.surgery.tracing.running import without_fastpath


def snip(model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration) -> dict[str, Tensor | str]:
    """|w dL/dw|, with L over all calibration data, in evaluation mode.

    It is the size of the loss's derivative by a gate on the weight, to first order its change when the weight goes.
    The paper divides by the sum over all weights, which changes no order.
    """
    probe, parameters = probe_of(model, weights)
    with without_fastpath(), torch.enable_grad():
        gradients = summed_gradients(probe, parameters, calibration, "snip")
    return {
        weight.name: (weight.values().cpu() * gradients[weight.name]).abs() if weight.name in gradients else NO_GRADIENT
        for weight in weights
    }


SNIP = WeightMethod(snip, needs_labels=True)
