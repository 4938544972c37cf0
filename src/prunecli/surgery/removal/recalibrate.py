"""Batch normalisation statistics measured anew after channels were removed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.errors import MethodError
from prunecli.inputs import model_device


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replaces running means and variances by their averages over the images of `batches`, without labels.

    Weights do not change. Normalisations without running statistics are left alone.

    Args:
        model: Changed in place.
        batches: Input batches, for instance of shape (N, 3, H, W).

    Returns:
        How many normalisation layers were measured; those that the network does not run keep what they have.

    Raises:
        MethodError: There are no batches.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    training = {module: module.training for module in model.modules()}
    reached: set[nn.Module] = set()
    hooks = [layer.register_forward_pre_hook(lambda module, _: reached.add(module)) for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
    device = model_device(model)
    images = 0
    try:
        with torch.no_grad():
            for batch in batches:
                images += len(batch)
                for layer in layers:
                    layer.momentum = len(batch) / images  # the first batch replaces what was there, then images average
                model(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in training.items():
            module.training = mode
    if images == 0:
        raise MethodError("the calibration data holds no batches; give at least one")
    return len(reached)
