"""Means of random estimates that arrive one by one, until the ranking they give is stable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunecli.criteria.base import Calibration
from prunecli.criteria.ranks import reliability
from prunecli.errors import MethodError
from prunecli.naming import option


class Draw(NamedTuple):
    """One estimate.

    Attributes:
        values: By group name, shape (units,), float64.
        samples: How many samples it was made from.
        half: 0 or 1: which half of the estimates it belongs to; the halves share no data.
    """

    values: dict[str, Tensor]
    samples: int
    half: int


@dataclass
class _Mean:
    """Mean and its standard error, weighted by the number of samples, in one pass (West, 1979)."""

    total: float = 0.0
    squares: float = 0.0
    mean: Tensor | float = 0.0
    spread: Tensor | float = 0.0

    def add(self, value: Tensor, samples: int) -> None:
        """Takes in one estimate."""
        self.total += samples
        share = samples / self.total
        self.squares = self.squares + samples**2
        shift = value - self.mean
        self.mean = self.mean + shift * share
        self.spread = self.spread + samples * shift * (value - self.mean)

    def standard_error(self) -> Tensor:
        """Of the mean: the estimates' deviation over the square root of how many there are, for equal weights."""
        number = self.total**2 / self.squares  # as many estimates of equal weight would vary as much
        variance = self.spread / self.total * (number / (number - 1))
        error: Tensor = (variance / number) ** 0.5
        return error


@dataclass(frozen=True)
class Estimate:
    """What came of it.

    Attributes:
        scores: By group name, shape (units,), float64.
        means: Means of the estimates before they became scores.
        standard_errors: Standard errors of the means, each of shape (units,).
        probes: Estimates taken.
        reliability: How far the ranking can be relied on, from halves that differ in their data and in their random
            vectors; see `prunecli.criteria.ranks.reliability`.
        halves: Scores from either half of the estimates.
    """

    scores: dict[str, Tensor]
    means: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    probes: int
    reliability: float
    halves: tuple[dict[str, Tensor], dict[str, Tensor]]

    def note(self, found: dict[str, Any]) -> None:
        """Writes down how it went, for the report; the standard error is the median over units."""
        found["probes"] = self.probes
        found["reliability"] = round(self.reliability, 4)
        known = [(self.standard_errors[name], mean.abs()) for name, mean in self.means.items()]
        shares = [(error / size)[size > 0] for error, size in known]  # units on which nothing depends have no share
        finite = [share[share.isfinite()] for share in shares]
        if any(len(share) for share in finite):
            found["relative_standard_error"] = round(float(torch.cat(finite).median()), 4)


@dataclass(frozen=True)
class Stop:
    """When there are enough.

    Attributes:
        fewest: Estimates that are always taken.
        most: Where it ends in any case.
        stability: Reliability at which it ends.
    """

    fewest: int = 16
    most: int = 128
    stability: float = 0.95

    @classmethod
    def of(cls, calibration: Calibration) -> Stop:
        """As the options say.

        Raises:
            MethodError: They contradict each other.
        """
        given = calibration.options
        stop = cls(
            given.get("min_probes", cls.fewest),
            given.get("max_probes", cls.most),
            given.get("stability", cls.stability),
        )
        if stop.fewest > stop.most:
            raise MethodError(
                f"{option('min_probes', stop.fewest)} is more than {option('max_probes', stop.most)}; lower one of them"
            )
        return stop


@dataclass
class _Halves:
    whole: dict[str, _Mean] = field(default_factory=dict)
    first: dict[str, _Mean] = field(default_factory=dict)
    second: dict[str, _Mean] = field(default_factory=dict)

    def add(self, draw: Draw) -> None:
        for name, value in draw.values.items():
            for means in (self.whole, self.second if draw.half else self.first):
                means.setdefault(name, _Mean()).add(value, draw.samples)


def stable_mean(draws: Iterable[Draw], stop: Stop, score: Callable[[str, Tensor], Tensor]) -> Estimate:
    """Averages estimates until the rankings from two halves of them agree.

    More random vectors do not make halves agree whose data differs: there it takes the most that are allowed.

    Memory is that of three means; no estimate is stored.

    Args:
        draws: The estimates, at least four; as many are taken as it needs.
        stop: When it ends.
        score: From a group's name and a mean, shape (units,), to its scores.
    """
    halves, number, agreed = _Halves(), 0, 0.0
    by_half: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for draw in draws:
        number += 1
        halves.add(draw)
        if number >= stop.fewest:
            by_half = tuple(  # type: ignore[assignment]
                {name: score(name, _tensor(mean)) for name, mean in means.items()}
                for means in (halves.first, halves.second)
            )
            agreed = reliability(*by_half)
            if number >= stop.most or (agreed >= stop.stability and stop.stability < 1):
                break
    means = {name: _tensor(mean) for name, mean in halves.whole.items()}
    return Estimate(
        scores={name: score(name, mean) for name, mean in means.items()},
        means=means,
        standard_errors={name: mean.standard_error() for name, mean in halves.whole.items()},
        probes=number,
        reliability=agreed,
        halves=by_half,
    )


def _tensor(mean: _Mean) -> Tensor:
    assert isinstance(mean.mean, Tensor)
    return mean.mean
