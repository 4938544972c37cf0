"""Measuring batch normalisation statistics again after channels were removed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.errors import MethodError
from prunecli.inputs import Inputs, run_batch, sample_count
from prunecli.modes import evaluating

_TOO_FEW = "more than 1 value per channel"
"""Part of torch's message when a batch normalisation in training mode gets one value per channel."""


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Replaces running means and variances by their averages over the samples of `batches`.

    Weights do not change. Normalisations without running statistics are not touched.

    Args:
        model: Changed in place.
        batches: Batches of inputs without labels, in any form the network accepts.

    Returns:
        Number of layers measured; those that the network does not run keep their statistics.

    Raises:
        MethodError: There are no batches, the network does not run on one, or one has a single value per channel, which
            has no variance.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    measured: set[nn.Module] = set()
    hooks = [layer.register_forward_pre_hook(lambda module, _: measured.add(module)) for layer in layers]
    samples = 0
    try:
        with torch.no_grad(), evaluating(model):
            for layer in layers:
                layer.train()
            for batch in batches:
                count = sample_count(batch)
                samples += count
                for layer in layers:
                    layer.momentum = count / max(samples, 1)  # the first batch replaces the old statistics
                run_batch(model, batch)
    except MethodError as error:
        if _TOO_FEW not in str(error):
            raise
        raise MethodError(
            "batch normalisation cannot be recalibrated on a batch of one sample; choose a batch size that leaves no "
            "batch with a single sample"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if samples == 0:
        raise MethodError("the calibration data contains no batches; provide at least one")
    return len(measured)
