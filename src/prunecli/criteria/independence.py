"""Whether a network says the same of a sample alone as in its batch, which derivatives by single samples rest on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.copying import converted
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, logits, output_tensors, run_batch, sample_count, take_samples

_AGREEMENT = 1e-2
_DEPENDENT = (
    "samples have to come first in inputs and labels, and this network says something else of the {place} alone "
    "than in its batch of {samples}; if it takes steps first (batch_first=False), wrap it in a module that transposes"
)


def require_independent_samples(probe: nn.Module, inputs: Inputs) -> None:
    """Compares what a network says of the first and the last sample of a batch with what it says of each alone.

    A network that takes steps first has no state of earlier steps when a step is run alone. Nothing is required of
    batches that are lists of samples, of networks that draw random numbers, and of outputs that cannot be assigned to
    samples, such as a loss. What differs is compared again in float64, since rounding makes a spike come or go.

    Args:
        probe: The network, in evaluation mode.
        inputs: A batch.

    Raises:
        MethodError: They differ.
    """
    if sample_count(inputs) < 2 or isinstance(inputs, list):
        return
    with torch.no_grad():
        place = _dependent(probe, inputs)
        if place is not None and _dependent(converted(probe, torch.float64), inputs) is not None:
            raise MethodError(_DEPENDENT.format(place=place, samples=sample_count(inputs)))


def _dependent(network: nn.Module, inputs: Inputs) -> str | None:
    """Which sample depends on its batch; None if neither does, or if it cannot be told."""
    whole, samples = _scores(network, inputs), sample_count(inputs)
    if whole is None:
        return None
    for word, place in (("first", 0), ("last", samples - 1)):
        alone = _scores(network, take_samples(inputs, place, place + 1))
        if alone is None or any(not _apart(guess, alone) for guess in _of_sample(whole, alone.shape, place, samples)):
            continue
        again = _scores(network, inputs)  # what is drawn at random differs from itself
        return None if again is None or _apart(whole, again) else word
    return None


def _scores(network: nn.Module, inputs: Inputs) -> Tensor | None:
    output = run_batch(network, inputs)
    if isinstance(output, list) or not output_tensors(output):
        return None
    scores = logits(output)
    return scores.cpu().double() if scores.dim() and scores.is_floating_point() else None


def _of_sample(whole: Tensor, shape: torch.Size, place: int, samples: int) -> list[Tensor]:
    """The part of a batch's output that may be one sample's: all ways to cut it to `shape`, which has no samples."""
    if whole.dim() != len(shape):
        return []
    blocks = steps = whole
    for dim, size in enumerate(shape):
        if whole.shape[dim] == size:
            continue
        if whole.shape[dim] != size * samples:
            return []
        blocks = blocks.narrow(dim, place * size, size)
        steps = steps.index_select(dim, torch.arange(place, whole.shape[dim], samples))
    return [blocks, steps]


def _apart(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return True
    scale = float(second.abs().max()) * _AGREEMENT + torch.finfo(torch.float32).tiny if second.numel() else 0.0
    return bool((first - second).abs().gt(scale).any())
