"""Calibration data in parts: the first samples of it, and its halves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from prunecli.collective import in_turn
from prunecli.criteria.base import Calibration, Paired
from prunecli.criteria.probe import two_batches_or_more
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, sample_count, take_samples
from prunecli.naming import more_samples, option


@dataclass(frozen=True)
class SomeSamples(Calibration):
    """The first samples of calibration data, in two batches at least.

    Attributes:
        samples: How many; 0: all.
        method: Who needs them, for messages.
    """

    samples: int = 0
    method: str = ""

    @classmethod
    def of(cls, calibration: Calibration, samples: int, method: str) -> SomeSamples:
        """The first `samples` of `calibration`."""
        own = {field.name: getattr(calibration, field.name) for field in fields(Calibration)}
        return cls(**own, samples=samples, method=method)

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, labels or None).

        Raises:
            MethodError: There are fewer samples, or only one.
        """
        yield from two_batches_or_more(_First(super().pairs, self.samples), self.method)


class _First:
    def __init__(self, pairs: Any, samples: int) -> None:
        self._pairs, self._samples = pairs, samples

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        taken = 0
        for inputs, labels in self._pairs():
            count = sample_count(inputs)
            if self._samples and taken + count > self._samples:
                count = self._samples - taken
                inputs, labels = take_samples(inputs, 0, count), _labels(labels, inputs, count)
            taken += count
            yield inputs, labels
            if taken == self._samples:
                return
        if taken < self._samples:
            raise MethodError(
                f"{option('samples', self._samples)}: the calibration data has {taken}; ask for fewer, or "
                f"{more_samples()}"
            )


def _labels(labels: Any, inputs: Inputs, count: int) -> Any:
    return take_samples(labels, 0, count) if sample_count(labels) == sample_count(inputs) else labels


class Turns:
    """Runs through data and tells which half of it the present batch belongs to: every other one.

    Args:
        data: The data.
        shared: Whether each process runs through its share alone; see `OwnShare`.

    Attributes:
        half: 0 or 1.
    """

    def __init__(self, data: Paired, *, shared: bool = False) -> None:
        self._data, self._shared, self.half = data, shared, 0

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, labels or None)."""
        numbered = enumerate(self._data.pairs())
        for number, pair in in_turn(numbered) if self._shared else numbered:
            self.half = number % 2
            yield pair


class FirstBatch:
    """The first batch of data alone.

    Args:
        data: The data.
    """

    def __init__(self, data: Paired) -> None:
        self._data = data

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        """Yields (inputs, labels or None)."""
        return islice(self._data.pairs(), 1)


def half_of(calibration: SomeSamples, half: int) -> Calibration:
    """Every other batch of calibration data, beginning with the first (0) or the second one (1)."""
    own = {field.name: getattr(calibration, field.name) for field in fields(SomeSamples)}
    return _Half(**own, half=half)


@dataclass(frozen=True)
class _Half(SomeSamples):
    half: int = 0

    def pairs(self) -> Iterator[tuple[Inputs, Any]]:
        yield from (pair for number, pair in enumerate(super().pairs()) if number % 2 == self.half)
