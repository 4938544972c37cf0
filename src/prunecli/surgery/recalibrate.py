"""Batch normalisation statistics measured anew after channels were removed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.measure.forward import model_device


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replaces running means and variances by their averages over `batches`; needs no labels and no gradients.

    Weights do not change. Normalisations without running statistics are left alone.

    Args:
        model: Changed in place.
        batches: Input batches, for instance of shape (N, 3, H, W).

    Returns:
        How many normalisation layers were measured.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    training = {module: module.training for module in model.modules()}
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average: every batch counts the same
        layer.train()
    device = model_device(model)
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch.to(device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in training.items():
            module.training = mode
    return len(layers)
