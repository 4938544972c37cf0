"""Label-free repair after a removal, and timing by phase."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from prunecli.inputs import Inputs, split_batch
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.reconstruction.reconstruct import reconstruct
from prunecli.surgery.removal.compensate import Compensation, compensate
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm


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
        compensation: How removed channels are folded into those that stay.
        recalibrate: Whether batch normalisation statistics are measured again.
        example_inputs: Inputs the network accepts, which tell a batch of several inputs from one with labels.

    Attributes:
        compensated: Layers that were adjusted in the last repair.
        recalibrated: Batch normalisations that were measured in that repair.
    """

    def __init__(
        self,
        calibration: Iterable[Any] | None,
        compensation: Compensation,
        recalibrate: bool,
        example_inputs: Inputs | None = None,
    ) -> None:
        self._calibration = _BatchInputs(calibration, example_inputs) if calibration is not None else None
        self._compensation, self._recalibrate = compensation, recalibrate
        self.compensated = self.recalibrated = 0

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
        # With new statistics to come, a constant shift before a normalisation does not matter.
        folding: Compensation = "ls" if self._compensation == "reconstruct" else self._compensation
        self.compensated = compensate(
            before, after, groups, keep, self._calibration, folding, intercept=self._recalibrate
        )
        if self._compensation == "reconstruct":
            found = reconstruct(before, after, groups, keep, self._calibration, seed=0)
            self.compensated = len(found.solved)
        clock.lap("compensate")
        self.recalibrated = recalibrate_batchnorm(after, self._calibration) if self._recalibrate else 0
        clock.lap("recalibrate")


class _BatchInputs:
    """The inputs of batches that may have labels."""

    def __init__(self, batches: Iterable[Any], example_inputs: Inputs | None) -> None:
        self._batches, self._example_inputs = batches, example_inputs

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield split_batch(batch, self._example_inputs)[0]
