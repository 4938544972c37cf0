"""Gradient flow, after Wang et al. (Picking Winning Tickets Before Training by Preserving Gradient Flow, ICLR 2020).

Sign: the paper's score of a weight is S = -w (Hg), twice which is the change of |g|^2 when the weight goes; weights
with the largest S are removed, because without them gradients are largest. Low scores go first here, so the score is
-S = w (Hg). Temperature: none, as in the paper's text; its authors' code divides scores by 200 before the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunecli.criteria.base import Calibration, OwnShare
from prunecli.criteria.probe import check_twice_differentiable
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod
from prunecli.criteria.weights.gradients import NO_GRADIENT, losses, probe_of, summed_gradients
from prunecli.errors import MethodError
from prunecli.inputs import explained
from prunecli.ranks import summed
from prunecli.surgery.tracing.running import without_fastpath

_TWICE = "grasp differentiates the loss twice, which this network does not allow"


def grasp(model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration) -> dict[str, Tensor | str]:
    """w (Hg), with H and g those of the loss over all calibration data, in evaluation mode."""
    probe, parameters = probe_of(model, weights)
    # Fused attention has no second derivative.
    with without_fastpath(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        gradients = summed_gradients(probe, parameters, calibration, "grasp")
        if not gradients:
            return dict.fromkeys((weight.name for weight in weights), NO_GRADIENT)
        known = {name: parameters[name] for name in gradients}
        products = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        for total in losses(probe, calibration, "grasp", OwnShare(calibration)):
            with explained(_TWICE, MethodError, "choose snip or magnitude instead"):
                for name, product in _hessian_products(total, known, gradients).items():
                    products[name] += product
    products = dict(zip(products, summed(products.values()), strict=True))
    return {
        weight.name: weight.values().cpu() * products[weight.name] if weight.name in products else NO_GRADIENT
        for weight in weights
    }


def _hessian_products(
    total: Tensor, parameters: dict[str, nn.Parameter], gradients: dict[str, Tensor]
) -> dict[str, Tensor]:
    """H g of one batch's loss with the gradient of all batches, in float64."""
    own = torch.autograd.grad(total, list(parameters.values()), create_graph=True, allow_unused=True)
    check_twice_differentiable(own)
    inner = [
        (gradient * gradients[name].to(gradient)).sum()
        for name, gradient in zip(parameters, own, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    if not inner:  # the loss is linear in all weights
        return {}
    second = torch.autograd.grad(torch.stack(inner).sum(), list(parameters.values()), allow_unused=True)
    return {
        name: product.detach().cpu().double()
        for name, product in zip(parameters, second, strict=True)
        if product is not None
    }


GRASP = WeightMethod(grasp, needs_labels=True)
