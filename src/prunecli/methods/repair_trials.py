"""Which repair is best after a removal: each is tried on some samples and judged on others, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, output_tensors, run_batch, sample_count, take_samples
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.reconstruction.lockstep import evaluating
from prunecli.surgery.reconstruction.reconstruct import reconstruct
from prunecli.surgery.removal.compensate import Compensation, Folding, compensate
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm

_HELD_OUT = 4
"""One of so many samples, at least, is held out to judge repairs on."""


@dataclass(frozen=True)
class RepairTrial:
    """One repair, judged on calibration samples that it did not use, without labels.

    Attributes:
        compensation: How removed channels were folded into those that stay.
        recalibrated: Whether normalisation statistics were measured again.
        difference: From the dense network: of scores for classes, their Kullback-Leibler divergence in nats; of other
            outputs, the mean squared error relative to their variance.
        agreement: Share of samples that both networks put into the same class; None where outputs are no such scores.
        chosen: Whether it is the one that was kept.
    """

    compensation: Compensation
    recalibrated: bool
    difference: float
    agreement: float | None
    chosen: bool = False


@dataclass(frozen=True)
class Removal:
    """A removal that is to be repaired.

    Attributes:
        dense: The network before it.
        groups: The groups of the trace.
        keep: Kept units by group name.
        seed: Of what is drawn at random.
    """

    dense: nn.Module
    groups: Sequence[ChannelGroup]
    keep: Keep
    seed: int

    def compensate(self, network: nn.Module, batches: Iterable[Inputs], kind: Compensation, recalibrated: bool) -> int:
        """Adjusts a network in place and returns how many layers it adjusted."""
        assert kind != "auto", "that is decided elsewhere"
        folding: Folding = "ls" if kind == "reconstruct" else kind
        # With new statistics to come, a constant shift before a normalisation does not matter.
        adjusted = compensate(
            self.dense,
            network,
            self.groups,
            self.keep,
            batches,
            folding,
            intercept=recalibrated or kind == "reconstruct",
        )
        if kind != "reconstruct":
            return adjusted
        done = reconstruct(self.dense, network, self.groups, self.keep, batches, self.seed, statistics=recalibrated)
        return max(adjusted, len(done.solved))


@dataclass(frozen=True)
class Repaired:
    """The best of several repairs.

    Attributes:
        trials: All of them.
        compensated: Layers that it adjusted.
        recalibrated: Batch normalisations that it measured.
    """

    trials: tuple[RepairTrial, ...]
    compensated: int
    recalibrated: int

    @property
    def best(self) -> RepairTrial:
        """The one that was chosen."""
        return next(trial for trial in self.trials if trial.chosen)


def best_repair(
    removal: Removal, after: nn.Module, batches: list[Inputs], compensation: Compensation, recalibrate: bool | None
) -> Repaired:
    """Tries repairs on copies of a pruned network and gives it the weights of the best.

    Args:
        removal: What was removed.
        after: The pruned network, changed in place.
        batches: Calibration samples, of which the last quarter is held out.
        compensation: The only one to try, or "auto".
        recalibrate: Whether statistics are measured again; None: both are tried.

    Raises:
        NotComparable: The network's outputs are of other sizes than those of the dense one; it has not changed.
    """
    fitted, held_out = _divided(batches)
    judge = _Judge(removal.dense, held_out)
    kinds = [kind for kind in get_args(Compensation) if kind != "auto"] if compensation == "auto" else [compensation]
    choices = (False, True) if recalibrate is None else (recalibrate,)
    trials: list[RepairTrial] = []
    best: tuple[int, nn.Module, int, int] | None = None  # the others' networks are not kept
    for kind, recalibrated in product(kinds, choices if _has_statistics(after) else (False,)):
        network = copied(after)
        compensated = removal.compensate(network, fitted, kind, recalibrated)
        measured = recalibrate_batchnorm(network, fitted) if recalibrated else 0
        trials.append(RepairTrial(kind, recalibrated, *judge(network)))
        if best is None or trials[-1].difference < trials[best[0]].difference:
            best = len(trials) - 1, network, compensated, measured
    assert best is not None, "at least one repair is tried"
    number, network, *counts = best
    _put_into(after, network)
    trials[number] = replace(trials[number], chosen=True)
    return Repaired(tuple(trials), *counts)


class NotComparable(Exception):
    """The outputs of two networks are of different sizes, such as lists of boxes."""


class _Judge:
    """Compares networks with the dense one on held-out batches.

    Args:
        dense: The dense network.
        batches: Inputs.
    """

    def __init__(self, dense: nn.Module, batches: list[Inputs]) -> None:
        self._batches = batches
        self._expected = [_outputs(dense, batch) for batch in batches]
        shapes = {tensor.dim() for tensors in self._expected for tensor in tensors}
        widths = {tensor.shape[-1] for tensors in self._expected for tensor in tensors}
        self._are_scores = shapes == {2} and len(widths) == 1 and min(widths) > 1

    def __call__(self, network: nn.Module) -> tuple[float, float | None]:
        """Difference and agreement; see `RepairTrial`.

        Raises:
            NotComparable: Outputs of the network have other shapes than those of the dense one.
        """
        lost = total = same = 0.0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            given = _outputs(network, batch)
            if [tensor.shape for tensor in given] != [tensor.shape for tensor in expected]:
                raise NotComparable
            for theirs, ours in zip(expected, given, strict=True):
                if self._are_scores:
                    log, other = theirs.log_softmax(-1), ours.log_softmax(-1)
                    lost += float((log.exp() * (log - other)).sum())
                    same += float((theirs.argmax(-1) == ours.argmax(-1)).sum())
                    total += len(theirs)
                else:
                    lost += float((theirs - ours).square().sum())
                    total += float((theirs - theirs.mean()).square().sum())
        total = max(total, torch.finfo(torch.float64).tiny)
        difference = lost / total
        return (difference if difference == difference else float("inf")), same / total if self._are_scores else None


def _outputs(network: nn.Module, batch: Inputs) -> list[Tensor]:
    """What a network gives in evaluation mode, in float64."""
    with torch.no_grad(), evaluating(network):
        given = output_tensors(run_batch(network, batch))
    return [tensor.double() for tensor in given if tensor.is_floating_point()]


def _has_statistics(network: nn.Module) -> bool:
    return any(isinstance(getattr(module, "running_mean", None), Tensor) for module in network.modules())


def _divided(batches: list[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    """Batches to repair with and batches to judge on; of a single one, its samples, and of a single sample, itself."""
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


def _put_into(network: nn.Module, other: nn.Module) -> None:
    """Gives a network the weights and statistics of a copy of it."""
    with torch.no_grad():
        for own, theirs in ((network.parameters(), other.parameters()), (network.buffers(), other.buffers())):
            for tensor, source in zip(own, theirs, strict=True):
                tensor.copy_(source)
