"""The temperature of soft masks over a run. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.errors import MethodError

_LENGTHS = (2, 4, 6)


@dataclass(frozen=True)
class Temperature:
    """first * (last / first) ** ((t - start) / (end - start)), constant before and after (Shi et al., ICLR 2024).

    Attributes:
        first: Temperature until `start`.
        last: Temperature from `end` on.
        start: In epochs.
        end: In epochs.
    """

    first: float
    last: float
    start: float
    end: float

    def at(self, epoch: float) -> float:
        """The temperature after this many epochs, which may be a fraction."""
        part = min(max((epoch - self.start) / (self.end - self.start), 0.0), 1.0)
        return float(self.first * (self.last / self.first) ** part)


def temperatures(values: Sequence[float], epochs: int) -> tuple[Temperature, Temperature]:
    """The temperatures of weights and of neurons.

    Args:
        values: first, last; or first, last, start, end; or first of weights, first of neurons, last of weights, last of
            neurons, start, end.
        epochs: Epochs of the run, where a run without start and end ends.

    Raises:
        MethodError: Another number of values, or a temperature that falls.
    """
    if len(values) not in _LENGTHS:
        raise MethodError(f"--temperatures has {len(values)} values; give 2, 4 or 6, for instance 5,1000")
    start, end = (values[-2], values[-1]) if len(values) > _LENGTHS[0] else (0.0, float(epochs))
    firsts, lasts = (values[:2], values[2:4]) if len(values) == _LENGTHS[2] else ((values[0],) * 2, (values[1],) * 2)
    if not 0 <= start < end:
        raise MethodError(f"--temperatures: from epoch {start:g} to {end:g} is no time; the second has to be later")
    for first, last in zip(firsts, lasts, strict=True):
        if not 0 < first <= last:
            raise MethodError(f"--temperatures falls from {first:g} to {last:g}; it has to rise, for instance 5,1000")
    weights, neurons = (Temperature(first, last, start, end) for first, last in zip(firsts, lasts, strict=True))
    return weights, neurons
