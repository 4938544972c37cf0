"""How near the outputs of a network are to the dense one's, without labels, on samples that nothing was fitted to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunecli.collective import in_turn
from prunecli.inputs import Inputs, output_tensors, run_batch, sample_count, take_samples
from prunecli.modes import evaluating
from prunecli.ranks import gathered, summed

_HELD_OUT = 4
"""One of so many samples, at least, is held out."""


class NotComparable(Exception):
    """The outputs of two networks are of different sizes, such as lists of boxes."""


class Judge:
    """Compares networks with the dense one on held-out batches, which processes that work together share.

    Args:
        dense: The dense network.
        batches: Inputs.
    """

    def __init__(self, dense: nn.Module, batches: list[Inputs]) -> None:
        self._batches = list(in_turn(batches))
        self._expected = [_outputs(dense, batch) for batch in self._batches]
        own = [(tensor.dim(), tensor.shape[-1]) for tensors in self._expected for tensor in tensors]
        everywhere = [one for part in gathered(own) for one in part]
        shapes, widths = {dim for dim, _ in everywhere}, {width for _, width in everywhere}
        self._are_scores = shapes == {2} and len(widths) == 1 and min(widths) > 1

    def __call__(self, network: nn.Module) -> tuple[float, float | None]:
        """How far a network is from the dense one, and the share of samples that both put into the same class.

        Of scores for classes, the difference is their Kullback-Leibler divergence in nats; of other outputs, the mean
        squared error relative to their variance, and there is no such share.

        Raises:
            NotComparable: Outputs of the network have other shapes than those of the dense one.
        """
        lost = total = same = others = 0.0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            given = _outputs(network, batch)
            if [tensor.shape for tensor in given] != [tensor.shape for tensor in expected]:
                others += 1
                break
            for theirs, ours in zip(expected, given, strict=True):
                if self._are_scores:
                    log, other = theirs.log_softmax(-1), ours.log_softmax(-1)
                    lost += float((log.exp() * (log - other)).sum())
                    same += float((theirs.argmax(-1) == ours.argmax(-1)).sum())
                    total += len(theirs)
                else:
                    lost += float((theirs - ours).square().sum())
                    total += float((theirs - theirs.mean()).square().sum())
        (sums,) = summed([torch.tensor([lost, total, same, others], dtype=torch.float64)])
        lost, total, same, others = sums.tolist()
        if others:
            raise NotComparable
        total = max(total, torch.finfo(torch.float64).tiny)
        difference = lost / total
        return (difference if difference == difference else float("inf")), same / total if self._are_scores else None


def _outputs(network: nn.Module, batch: Inputs) -> list[Tensor]:
    """What a network gives in evaluation mode, in float64."""
    with torch.no_grad(), evaluating(network):
        given = output_tensors(run_batch(network, batch))
    return [tensor.double() for tensor in given if tensor.is_floating_point()]


def divided(batches: list[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    """Batches to fit on and batches to judge on; of a single one, its samples, and of a single sample, itself."""
    if len(batches) == 1:
        count = sample_count(batches[0])
        if count < 2:
            return batches, batches
        end = count - max(1, count // _HELD_OUT)
        return [take_samples(batches[0], 0, end)], [take_samples(batches[0], end, count)]
    counts = [sample_count(batch) for batch in batches]
    first = len(batches) - 1
    while first > 1 and sum(counts[first:]) * _HELD_OUT < sum(counts):
        first -= 1
    return batches[:first], batches[first:]
