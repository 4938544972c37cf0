"""Whether intervals of latency ratios have their nominal coverage on this machine, idle or busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from prunecli.inputs import Inputs
from prunecli.measure.latency import time_paired


@dataclass(frozen=True)
class RatioTrials:
    """Repeated measurements of one latency ratio.

    Attributes:
        ratios: The measured ratios, in order.
        intervals: The interval of each ratio.
    """

    ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]

    def covered(self, value: float = 1.0) -> int:
        """How many of the intervals contain `value`."""
        return sum(low <= value <= high for low, high in self.intervals)


def ratio_trials(
    first: nn.Module, second: nn.Module, inputs: Inputs, *, repetitions: int, rounds: int = 30
) -> RatioTrials:
    """Measures the latency ratio of `second` to `first` repeatedly, each time as `prune compare` does.

    Args:
        first: The reference; may be the same object as `second`.
        second: The model compared with it.
        inputs: Inputs that both accept.
        repetitions: Number of measurements.
        rounds: Paired timings per measurement.
    """
    trials = [time_paired([first, second], [inputs, inputs], rounds=rounds) for _ in range(repetitions)]
    return RatioTrials(tuple(trial.ratios[1] for trial in trials), tuple(trial.ratio_intervals[1] for trial in trials))


_BURNER = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keeps `count` cores busy with processes that spin, and that end with this process."""
    burners = [subprocess.Popen([sys.executable, "-c", _BURNER]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
