"""Label-free repair after a removal, and timing by phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, output_tensors, run_batch, sample_count, split_batch, take_samples
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.reconstruction.reconstruct import reconstruct
from prunecli.surgery.removal.compensate import Compensation, Folding, compensate
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm

_HELD_OUT = 4
"""One of so many samples, at least, is held out to judge repairs on."""


class Clock:
    """Wall time by phase, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to a phase."""
        now = time.perf_counter()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self._last, 4)
        self._last = now


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


class Repair:
    """Compensation and recalibration of a pruned network.

    Args:
        calibration: Batches that can be iterated more than once, inputs or (inputs, labels); None: no repair.
        compensation: How removed channels are folded into those that stay; "auto": whichever is nearest to the dense
            network on held-out batches.
        recalibrate: Whether batch normalisation statistics are measured again; None: likewise.
        example_inputs: Inputs the network accepts, which tell a batch of several inputs from one with labels.
        seed: Of what is drawn at random.

    Attributes:
        compensated: Layers that were adjusted in the last repair.
        recalibrated: Batch normalisations that were measured in that repair.
        trials: The repairs that were compared then; empty where there was nothing to choose.
    """

    def __init__(
        self,
        calibration: Iterable[Any] | None,
        compensation: Compensation,
        recalibrate: bool | None,
        example_inputs: Inputs | None = None,
        seed: int = 0,
    ) -> None:
        self._calibration = _BatchInputs(calibration, example_inputs) if calibration is not None else None
        self._compensation, self._recalibrate, self._seed = compensation, recalibrate, seed
        self.compensated = self.recalibrated = 0
        self.trials: tuple[RepairTrial, ...] = ()

    def __call__(
        self,
        before: nn.Module,
        after: nn.Module,
        groups: Sequence[ChannelGroup],
        keep: Keep,
        clock: Clock | None = None,
    ) -> None:
        """Repairs `after` in place: the network `before` with only the units in `keep`."""
        clock = clock or Clock()
        if self._calibration is None:
            return
        work = _Work(before, groups, keep, self._seed)
        if self._compensation != "auto" and self._recalibrate is not None:
            self.compensated = work.compensate(after, self._calibration, self._compensation, self._recalibrate)
            clock.lap("compensate")
            self.recalibrated = recalibrate_batchnorm(after, self._calibration) if self._recalibrate else 0
            clock.lap("recalibrate")
            return
        fitted, held_out = _divided(list(self._calibration))
        self._choose(work, after, fitted, held_out)
        clock.lap("repair")

    def _choose(self, work: _Work, after: nn.Module, fitted: list[Inputs], held_out: list[Inputs]) -> None:
        """Tries repairs on copies and puts the best into `after`."""
        judge = _Judge(work.dense, held_out)
        known = [kind for kind in get_args(Compensation) if kind != "auto"]
        kinds = known if self._compensation == "auto" else [self._compensation]
        again = (False, True) if self._recalibrate is None else (self._recalibrate,)
        again = again if _has_statistics(after) else (False,)
        trials: list[RepairTrial] = []
        best: tuple[float, nn.Module, int, int] | None = None
        solved: tuple[nn.Module, int] | None = None
        for kind, recalibrated in product(kinds, again):
            if kind == "reconstruct" and solved is not None:  # new statistics or not, its weights are the same
                network, compensated = copied(solved[0]), solved[1]
            else:
                network = copied(after)
                compensated = work.compensate(network, fitted, kind, recalibrated)
            if kind == "reconstruct" and not recalibrated:
                solved = network, compensated
            measured = recalibrate_batchnorm(network, fitted) if recalibrated else 0
            difference, agreement = judge(network)
            trials.append(RepairTrial(kind, recalibrated, difference, agreement))
            if best is None or difference < best[0]:
                best = difference, network, compensated, measured
        assert best is not None, "at least one repair is tried"
        least, network, self.compensated, self.recalibrated = best
        _put_into(after, network)
        chosen = next(index for index, trial in enumerate(trials) if trial.difference == least)
        self.trials = tuple(
            RepairTrial(**{**vars(trial), "chosen": index == chosen}) for index, trial in enumerate(trials)
        )


@dataclass(frozen=True)
class _Work:
    """What a removal did."""

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
        return max(adjusted, len(reconstruct(self.dense, network, self.groups, self.keep, batches, self.seed).solved))


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
        """Difference and agreement; see `RepairTrial`."""
        lost = total = same = 0.0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            for theirs, ours in zip(expected, _outputs(network, batch), strict=True):
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
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            return [
                tensor.double() for tensor in output_tensors(run_batch(network, batch)) if tensor.is_floating_point()
            ]
    finally:
        for module, mode in training.items():
            module.training = mode


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


class _BatchInputs:
    """The inputs of batches that may have labels."""

    def __init__(self, batches: Iterable[Any], example_inputs: Inputs | None) -> None:
        self._batches, self._example_inputs = batches, example_inputs

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield split_batch(batch, self._example_inputs)[0]
