"""Measuring batch normalisation statistics again after channels were removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.collective import in_turn
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, run_batch, sample_count
from prunecli.modes import evaluating
from prunecli.ranks import gathered, summed, together

_TOO_FEW = "more than 1 value per channel"
"""Part of torch's message when a batch normalisation in training mode gets one value per channel."""


def recalibrate_batchnorm(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Replaces running means and variances by their averages over the samples of `batches`.

    Weights do not change. Normalisations without running statistics are not touched. Processes that work together take
    batches in turns and average what they find, so a batch is normalised by itself wherever it is.

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
    seen_before = [layer.num_batches_tracked.clone() for layer in layers if layer.num_batches_tracked is not None]
    measured: set[nn.Module] = set()
    hooks = [layer.register_forward_pre_hook(lambda module, _: measured.add(module)) for layer in layers]
    samples = 0
    try:
        with torch.no_grad(), evaluating(model):
            for layer in layers:
                layer.train()
            for batch in in_turn(batches):
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
    if sum(gathered(samples)) == 0:
        raise MethodError("the calibration data contains no batches; provide at least one")
    if together():
        _over_ranks(layers, seen_before, samples)
    return len(set().union(*gathered({number for number, layer in enumerate(layers) if layer in measured})))


def _over_ranks(layers: Sequence[_BatchNorm], seen_before: Sequence[Tensor], samples: int) -> None:
    """Gives layers the averages over all processes, weighted by samples, and the number of batches of all."""
    statistics = [
        tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None
    ]
    counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    own = [torch.tensor(samples), *(tensor.double().cpu() * samples for tensor in statistics)]
    whole, *totals = summed(own)
    news = summed(counter - before for counter, before in zip(counters, seen_before, strict=True))
    with torch.no_grad():
        for tensor, total in zip(statistics, totals, strict=True):
            tensor.copy_(total / whole)
        for counter, before, new in zip(counters, seen_before, news, strict=True):
            counter.copy_(before + new.to(before))
