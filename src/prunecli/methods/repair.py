"""Label-free repair after a removal, and timing by phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, sample_count, split_batch
from prunecli.methods.likeness import NotComparable
from prunecli.methods.repair_trials import (
    Compensator,
    Removal,
    Repaired,
    RepairTrial,
    best_repair,
    repaired,
)
from prunecli.phases import counting, phase
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.compensate import Compensation

_COMPARED = 384
"""Samples on which repairs are compared; with more, the best is then made with all of them."""


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


class Repair:
    """Compensation and recalibration of a pruned network.

    Args:
        calibration: Batches that can be iterated more than once, inputs or (inputs, labels); None: no repair.
        compensation: How removed channels are folded into those that stay; "auto": whichever is nearest to the dense
            network on held-out batches, or "ls" where outputs have no fixed size.
        recalibrate: Whether batch normalisation statistics are measured again; None: likewise.
        example_inputs: Inputs the network accepts, which tell a batch of several inputs from one with labels.
        seed: Of what is drawn at random.

    Attributes:
        inputs: The inputs of the calibration batches; None: there are none.
        compensated: Layers that were adjusted in the last repair.
        recalibrated: Batch normalisations that were measured in that repair.
        trials: The repairs that were compared then; empty where there was nothing to choose.
        reconstruction: What reconstruction did then; empty where there was none.
    """

    def __init__(
        self,
        calibration: Iterable[Any] | None,
        compensation: Compensation,
        recalibrate: bool | None,
        example_inputs: Inputs | None = None,
        seed: int = 0,
    ) -> None:
        self.inputs = _BatchInputs(calibration, example_inputs) if calibration is not None else None
        self._compensation, self._recalibrate, self._seed = compensation, recalibrate, seed
        self.compensated = self.recalibrated = 0
        self.trials: tuple[RepairTrial, ...] = ()
        self.reconstruction: dict[str, Any] = {}

    @phase("repair")
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
        if self.inputs is None:
            return
        removal = Removal(before, groups, keep, self._seed)
        if self._compensation != "auto" and self._recalibrate is not None:
            self._apply(removal, after, self._compensation, self._recalibrate, clock)
            return
        some, all_of_them = first_samples(self.inputs)
        tried = after if all_of_them else copied(after)
        try:
            found = best_repair(removal, tried, some, self._compensation, self._recalibrate)
        except NotComparable:
            plain: Compensation = "ls" if self._compensation == "auto" else self._compensation
            self._apply(removal, after, plain, self._recalibrate is not False, clock)
            return
        self.trials = found.trials
        self._note(found)
        clock.lap("try repairs")
        if not all_of_them:
            self._apply(removal, after, found.best.compensation, found.best.recalibrated, clock)

    def _apply(
        self, removal: Removal, after: nn.Module, compensation: Compensation, recalibrate: bool, clock: Clock
    ) -> None:
        assert self.inputs is not None, "there is no repair without"
        compensator = Compensator(removal, self.inputs, [compensation])
        self._note(repaired(compensator, after, self.inputs, compensation, recalibrated=recalibrate))
        clock.lap("repair")

    def _note(self, done: Repaired) -> None:
        self.compensated, self.recalibrated = done.compensated, done.recalibrated
        self.reconstruction = done.reconstruction.figures() if done.reconstruction is not None else {}


def first_samples(batches: Iterable[Inputs]) -> tuple[list[Inputs], bool]:
    """The first batches, as many as are enough to compare repairs, and whether that is all of them."""
    some: list[Inputs] = []
    count = 0
    for batch in batches:
        if count >= _COMPARED:
            return some, False
        some.append(batch)
        count += sample_count(batch)
    return some, True


class _BatchInputs:
    """The inputs of batches that may have labels."""

    def __init__(self, batches: Iterable[Any], example_inputs: Inputs | None) -> None:
        self._batches, self._example_inputs = batches, example_inputs

    def __iter__(self) -> Iterator[Any]:
        for batch in counting(self._batches, "batch"):
            yield split_batch(batch, self._example_inputs)[0]
