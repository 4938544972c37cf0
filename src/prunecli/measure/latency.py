"""Latency on a shared machine: models are timed in turns, and ratios come with an interval.

Other programs interrupt long runs more often than short ones, so on a busy machine the ratio of medians says little
about the networks. A ratio is therefore that of the 10 % quantiles; on a quiet machine both are the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.copying import copied, sharing_parameters
from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call, explained, fitted, map_tensors
from prunecli.phases import phase, reached

_RESAMPLES = 2000
_UNDISTURBED = 0.1
"""Quantile of a network's times that is used in ratios."""
_CAUTIOUS = 0.99
"""A bootstrap is too narrow: on an overloaded machine its 99 % interval of 30 rounds covers 95 %, on others more."""
_FEW = 10
"""Rounds below which an interval is so wide that it says little."""
_WIDEST = 100.0
"""Bounds of an interval are at most this many times the figure, or its part, however few the rounds."""
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Timing:
    """Time of one forward pass.

    Attributes:
        median: Median in milliseconds.
        interval: Its 95 % bootstrap interval.
        runs: How many passes were timed.
    """

    median: float
    interval: tuple[float, float]
    runs: int


@dataclass(frozen=True)
class PairedTiming:
    """Timings of several models taken in turns.

    Attributes:
        timings: The timing of each model.
        ratios: Ratio of each model to the first, which is not the ratio of medians; see `time_paired`.
        ratio_intervals: Interval of each ratio.
    """

    timings: tuple[Timing, ...]
    ratios: tuple[float, ...]
    ratio_intervals: tuple[tuple[float, float], ...]

    @property
    def rounds(self) -> int:
        """How often each was timed."""
        return self.timings[0].runs


@dataclass(frozen=True)
class Execution:
    """How networks are run when they are timed.

    Attributes:
        channels_last: Whether weights and images of convolutions have their channels last in memory.
        compiled: Whether `torch.compile` compiles the networks first, which is not part of the time.
    """

    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        given = (("channels-last", self.channels_last), ("compiled", self.compiled))
        return " and ".join(name for name, on in given if on) or "as they are"


@phase("time", undisturbed=True)
def time_paired(
    models: Sequence[nn.Module],
    inputs: Sequence[Inputs],
    *,
    rounds: int = 30,
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
) -> PairedTiming:
    """Times models in interleaved rounds, so that a busy machine slows all of them equally.

    Every second round reverses the order of the previous one, and each pair of rounds draws a new order: a fixed order
    can synchronise with the scheduler, which then always interrupts the same model.

    Args:
        models: One or more models; ratios refer to the first. They are not changed.
        inputs: Inputs of any form for each model.
        rounds: How often each model is timed, at least 2.
        device: The device to run on.
        execution: How they are run; default: as they are.

    Returns:
        Medians in milliseconds with 95 % intervals, and ratios of 10 % quantiles with intervals that contain the true
        ratio in about 95 of 100 cases or more. All intervals are bootstraps over whole rounds, widened for few of them.

    Raises:
        ModelError: A network cannot be compiled.
    """
    device, execution = torch.device(device), execution or Execution()
    try:
        return _paired(models, inputs, rounds, device, execution)
    except RuntimeError:
        if device.type != "cpu" or not any(p.dtype in _HALF for model in models for p in model.parameters()):
            raise
        # The CPU lacks some operators in half precision.
        return _paired([copied(model).float() for model in models], inputs, rounds, device, execution)


def _paired(
    models: Sequence[nn.Module],
    inputs: Sequence[Inputs],
    rounds: int,
    device: torch.device,
    execution: Execution,
) -> PairedTiming:
    ready = [_ready(model, device) for model in models]
    moved = [fitted(model_inputs, model) for model_inputs, model in zip(inputs, ready, strict=True)]
    if execution.channels_last:
        ready = [copied(model).to(memory_format=torch.channels_last) for model in ready]
        moved = [map_tensors(model_inputs, _with_channels_last) for model_inputs in moved]
    samples = np.empty((rounds, len(ready)))
    with torch.inference_mode():
        if execution.compiled:
            ready = [_compiled(model, model_inputs) for model, model_inputs in zip(ready, moved, strict=True)]
        for model, model_inputs in zip(ready, moved, strict=True):
            for _ in range(3):
                _timed(model, model_inputs, device)
        for row, order in enumerate(_orders(rounds, len(ready))):
            reached(row, rounds, "round")
            for column in order:
                samples[row, column] = _timed(ready[column], moved[column], device)
    return summarise(samples, _UNDISTURBED, _CAUTIOUS)


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy on the device; weights that are there already are shared, since no pass changes them."""
    if all(parameter.device == device for parameter in model.parameters()):
        return sharing_parameters(model).eval()
    return copied(model).to(device).eval()


def _with_channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _compiled(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The network compiled for inputs of these shapes.

    Raises:
        ModelError: That fails, for instance because there is no compiler.
    """
    torch.compiler.reset()  # two networks of one class have the same code, and would count as one that changes shape
    compiled: Any = torch.compile(model, dynamic=False)
    with explained("the network cannot be compiled", ModelError, "leave --compile out"):
        call(compiled, inputs)
    return cast(nn.Module, compiled)


def time_model(model: nn.Module, inputs: Inputs, *, rounds: int = 30, device: torch.device | str = "cpu") -> Timing:
    """Times one model; see `time_paired`."""
    return time_paired([model], [inputs], rounds=rounds, device=device).timings[0]


def few_rounds(rounds: int) -> str | None:
    """What to say of so few rounds that intervals are wide; None if there are enough."""
    return f"latency: intervals of {rounds} rounds are wide; more rounds narrow them" if rounds < _FEW else None


def _orders(rounds: int, models: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    order = np.arange(models)
    for row in range(rounds):
        order = order[::-1] if row % 2 else generator.permutation(models)
        yield order


def _timed(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    call(model, inputs)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def summarise(samples: NDArray[np.float64], quantile: float = 0.5, confidence: float = 0.95) -> PairedTiming:
    """Medians, ratios to the first column and bootstrap intervals of paired samples.

    A bootstrap of n samples is too narrow by sqrt(n / (n - 1)) and by what Student's distribution is wider than the
    normal one (Hesterberg, What Teachers Should Know About the Bootstrap, 2015): a network beside itself had a ratio
    other than one in every fourth trial of three rounds. So bounds are moved away from the figure by both factors, as
    logarithms, since times are positive and skewed.

    Args:
        samples: Shape (rounds, columns).
        quantile: Quantile of each column that ratios compare; by default the median.
        confidence: Share of the resampled ratios inside each interval.
    """
    rounds = len(samples)
    picks = np.random.default_rng(0).integers(0, rounds, size=(_RESAMPLES, rounds))
    resampled = samples[picks]  # (resamples, rounds, models)
    medians, typical = np.median(samples, axis=0), np.quantile(samples, quantile, axis=0)
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5], axis=0)
    compared = np.quantile(resampled, quantile, axis=1)
    beyond = (1 - confidence) / 2
    ratio_low, ratio_high = np.quantile(compared / compared[:, :1], [beyond, 1 - beyond], axis=0)
    ratios = typical / typical[0]
    timings = tuple(
        Timing(float(median), bounds, rounds)
        for median, bounds in zip(medians, _widened(medians, low, high, rounds, 0.95), strict=True)
    )
    intervals = _widened(ratios, ratio_low, ratio_high, rounds, confidence)
    return PairedTiming(timings, tuple(map(float, ratios)), tuple(intervals))


def _widened(
    figures: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    rounds: int,
    confidence: float,
) -> list[tuple[float, float]]:
    """Bounds of bootstrap intervals, moved away from the figures by what few rounds hide; see `summarise`."""
    from scipy.special import ndtri, stdtrit

    beyond = (1 + confidence) / 2
    factor = float(stdtrit(rounds - 1, beyond) / ndtri(beyond)) * (rounds / (rounds - 1)) ** 0.5
    below, above = np.minimum(low, figures) / figures, np.maximum(high, figures) / figures
    bounds = np.clip(np.stack([below**factor, above**factor], axis=1), 1 / _WIDEST, _WIDEST) * figures[:, None]
    return [(float(first), float(last)) for first, last in bounds]
