"""Latency on a shared machine: models are timed in turns, and the ratio comes with an interval."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prunecli.measure.forward import Inputs, call, cast_inputs

_RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one forward pass: the median and its 95 % bootstrap interval."""

    median: float
    interval: tuple[float, float]
    runs: int


@dataclass(frozen=True)
class PairedTiming:
    """Timings of several models taken in turns, and each one's ratio to the first with its 95 % interval."""

    timings: tuple[Timing, ...]
    ratios: tuple[float, ...]
    ratio_intervals: tuple[tuple[float, float], ...]


def time_paired(
    models: Sequence[nn.Module], inputs: Sequence[Inputs], *, rounds: int = 30, device: torch.device | str = "cpu"
) -> PairedTiming:
    """Times models in interleaved rounds (AB, BA, AB, ...), so that a busy machine slows all of them alike.

    Args:
        models: One or more models; the first is the reference of the ratios. They are not changed.
        inputs: One input for each model.
        rounds: How often each model is timed, at least 2.
        device: Where to run.

    Returns:
        Medians in milliseconds, ratios of medians, and bootstrap intervals that resample whole rounds.
    """
    device = torch.device(device)
    ready = [copy.deepcopy(model).to(device).eval() for model in models]
    moved = [cast_inputs(one, device=device) for one in inputs]
    samples = np.empty((rounds, len(ready)))
    with torch.inference_mode():
        for model, one in zip(ready, moved, strict=True):
            for _ in range(3):
                _timed(model, one, device)
        order = list(range(len(ready)))
        for row in range(rounds):
            for column in order if row % 2 == 0 else reversed(order):
                samples[row, column] = _timed(ready[column], moved[column], device)
    return summarise(samples)


def time_model(model: nn.Module, inputs: Inputs, *, rounds: int = 30, device: torch.device | str = "cpu") -> Timing:
    """Times one model; see `time_paired`."""
    return time_paired([model], [inputs], rounds=rounds, device=device).timings[0]


def _timed(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    call(model, inputs)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (time.perf_counter() - start) * 1e3


def summarise(samples: NDArray[np.float64]) -> PairedTiming:
    """Medians, ratios to the first column and bootstrap intervals of paired samples, shape (rounds, columns)."""
    rounds = len(samples)
    picks = np.random.default_rng(0).integers(0, rounds, size=(_RESAMPLES, rounds))
    resampled = np.median(samples[picks], axis=1)  # (resamples, models)
    medians = np.median(samples, axis=0)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    ratio_low, ratio_high = np.percentile(resampled / resampled[:, :1], [2.5, 97.5], axis=0)
    timings = tuple(Timing(float(m), (float(a), float(b)), rounds) for m, a, b in zip(medians, low, high, strict=True))
    intervals = tuple((float(a), float(b)) for a, b in zip(ratio_low, ratio_high, strict=True))
    return PairedTiming(timings, tuple(float(m / medians[0]) for m in medians), intervals)
