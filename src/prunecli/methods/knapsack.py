"""How many units each group keeps so that little is lost within a budget: a knapsack with several choices a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BINS = 4096
"""Steps into which a budget is divided."""


@dataclass(frozen=True)
class Choices:
    """What one group may keep.

    Attributes:
        units: Units that stay, ascending.
        losses: What is lost with so many.
    """

    units: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]


def cheapest(
    choices: Mapping[str, Choices],
    prices: Mapping[str, npt.NDArray[np.float64]],
    most: float,
    allowed: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """Units of each group with the least loss in all, among those that are allowed.

    Dynamic programming over the groups, in steps of a 4,096th of the cost of keeping everything, finds the best for
    every budget at once; the largest budget up to `most` whose solution is allowed is taken.

    Args:
        choices: What each group may keep.
        prices: What each choice of each group costs.
        most: The budget to begin with.
        allowed: Whether a solution is within the real budget, of which prices are only the direction.

    Returns:
        Units by group; the fewest of all groups where nothing is allowed.
    """
    names = list(choices)
    everything = sum(float(prices[name].max()) for name in names)
    step = max(everything, 1e-300) / _BINS
    # What has to be kept anyway is not part of the budget, so it is not rounded.
    spent = [np.ceil((prices[name] - prices[name].min()) / step - 1e-9).astype(np.int64) for name in names]
    least = sum(float(prices[name].min()) for name in names)
    bins = max(0, min(_BINS + len(names), int((most - least) / step + 1e-9)))
    taken = _table([choices[name].losses for name in names], spent, bins)
    for budget in range(bins, -1, -1):
        places = _traced(taken, spent, budget)
        units = {name: int(choices[name].units[place]) for name, place in zip(names, places, strict=True)}
        if allowed(units):
            return units
    return {name: int(choices[name].units[0]) for name in names}


def _table(
    losses: Sequence[npt.NDArray[np.float64]], spent: Sequence[npt.NDArray[np.int64]], bins: int
) -> list[npt.NDArray[np.int64]]:
    """For each group, by budget, which of its choices is best together with the groups before it."""
    total = np.zeros(bins + 1)
    taken: list[npt.NDArray[np.int64]] = []
    for own, cost in zip(losses, spent, strict=True):
        candidates = np.full((len(own), bins + 1), np.inf)
        for place, (loss, price) in enumerate(zip(own, cost, strict=True)):
            if price <= bins:
                candidates[place, price:] = total[: bins + 1 - price] + loss
        taken.append(candidates.argmin(axis=0))
        total = candidates.min(axis=0)
    return taken


def _traced(taken: Sequence[npt.NDArray[np.int64]], spent: Sequence[npt.NDArray[np.int64]], budget: int) -> list[int]:
    def backwards() -> Iterator[int]:
        left = budget
        for own, cost in zip(reversed(taken), reversed(spent), strict=True):
            place = int(own[left])
            left -= int(cost[place])
            yield place

    return list(backwards())[::-1]
