"""Shares of layers by consequence: what the network's outputs lose when one layer alone loses channels, measured.

Each group alone is cut to several widths, by its scores; what was removed is folded into the rest by regression on the
dense network's activations, which takes one pass over them for all groups; and the outputs are compared with the dense
network's on calibration samples that the regression did not see. Without labels. Losses of groups are taken to add
up, and for a budget the widths with the least sum are found by dynamic programming (see `prunecli.methods.knapsack`).
(After Frantar and Alistarh, SPDY, ICML 2022, which does so for single weights.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.collective import each
from prunecli.copying import copied
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, sample_count, take_samples
from prunecli.methods.knapsack import Choices, cheapest
from prunecli.methods.layer_costs import LayerCosts
from prunecli.methods.likeness import Judge, NotComparable, divided
from prunecli.naming import give_data, option
from prunecli.phases import phase, reached
from prunecli.ranks import alone
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.removal.compensate import Readings
from prunecli.surgery.removal.head_basis import concentrated
from prunecli.surgery.removal.slice import kept_positions, remove, without_copies

_SHARES = (0.25, 0.5, 0.7, 0.85)
"""Shares of a group's units that are removed on trial, beside the most that it may lose."""
_JUDGED = 128
"""Samples on which a trial is judged, at most."""
_ROUNDS = 6
"""How often costs of channels, which depend on the widths of neighbours, are found again."""


@dataclass(frozen=True)
class Curve:
    """What the network loses with the units of one group.

    Attributes:
        units: Units that stay, ascending; the last is all of them.
        losses: Differences from the dense network; see `prunecli.methods.likeness.Judge`. They do not rise with units.
    """

    units: tuple[int, ...]
    losses: tuple[float, ...]

    def at(self, units: np.ndarray) -> np.ndarray:
        """Losses with other numbers of units, on straight lines between those that were measured."""
        losses: np.ndarray = np.interp(units, self.units, self.losses)
        return losses


class Consequences:
    """How many units each group keeps, by what their removal was measured to cost.

    Args:
        curves: By group name.
        costs: What units cost.
        dense: The cost that ratios count against; default: that of the present network.
    """

    def __init__(self, curves: Mapping[str, Curve], costs: LayerCosts, dense: float | None = None) -> None:
        self._curves, self._costs = curves, costs
        self._whole = {name: curve.units[-1] for name, curve in curves.items()}
        self._dense = costs.total(self._whole) if dense is None else dense

    def counts(self, ratio: float, allowed: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Units that each group keeps when a share of the cost goes.

        Args:
            ratio: The share.
            allowed: Numbers of units that a group may keep, ascending.
        """
        choices = {
            name: Choices(units := np.asarray(numbers, dtype=np.int64), self._curves[name].at(units))
            for name, numbers in allowed.items()
        }
        whole, budget = self._whole, (1 - ratio) * self._dense
        present: dict[str, float] = {name: (1 - ratio) * count for name, count in whole.items()}
        found: dict[str, int] = {}
        for _ in range(_ROUNDS):
            # What each group costs while the others are as they are now; of that, changes are taken to add up.
            prices = {name: self._costs.prices(name, choice.units, present) for name, choice in choices.items()}
            at_present = sum(
                float(np.interp(present[name], choice.units, prices[name])) for name, choice in choices.items()
            )
            most = budget - self._costs.total(present) + at_present
            before = found
            found = cheapest(choices, prices, most * 1.1, lambda units: self._costs.total(units) <= budget)
            if found == before:
                break
            present = {name: (present[name] + count) / 2 for name, count in found.items()}
        return found

    def expected(self, units: Mapping[str, int]) -> float:
        """The sum of what groups lose by themselves."""
        return float(sum(self._curves[name].at(np.asarray([count]))[0] for name, count in units.items()))


@phase("measure")
def measure_curves(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    fewest: Mapping[str, int],
    batches: Iterable[Inputs],
) -> dict[str, Curve]:
    """Cuts each group alone to several widths and judges the network.

    Args:
        model: The network; not changed.
        groups: Its groups.
        scores: Scores of their units.
        fewest: The fewest units that each may keep.
        batches: Calibration inputs.

    Raises:
        MethodError: There are no samples, or outputs differ in size from those of the dense network.
    """
    given = [batch for batch in batches if sample_count(batch)]
    if not given:
        raise MethodError(f"{option('scope', 'measured')} judges layers on data: {give_data()}")
    fitted, held_out = divided(given)
    with alone():  # each process judges groups of its own
        judge = Judge(model, _at_most(held_out, _JUDGED))
    ranked = {name: torch.sort(values, descending=True, stable=True).indices for name, values in scores.items()}
    model, _ = concentrated(model, groups, ranked, fitted)
    shrinking = [group for group in groups if group.units > 1]
    readings = Readings(model, groups, {group.name: torch.arange(group.units - 1) for group in shrinking}, fitted)

    def curve_of(group: ChannelGroup) -> Curve:
        reached(groups.index(group), len(groups), "layer")
        least = fewest[group.name]
        widths = sorted({least, *(max(least, round(group.units * (1 - share))) for share in _SHARES)} - {group.units})
        losses: list[float] = []
        for count in widths:
            keep = {group.name: ranked[group.name][:count].sort().values}
            kept = kept_positions(model, groups, keep)
            trial = copied(model, without_copies(model, groups, kept))
            remove(trial, groups, keep)
            readings.of(groups, keep).fold(trial, "ls", intercept=False)
            try:
                losses.append(judge(trial)[0])
            except NotComparable as error:  # lists of boxes, for instance
                raise MethodError(
                    f"{option('scope', 'measured')} compares outputs, and those of this network differ in size; choose "
                    f"{option('scope', 'global')}"
                ) from error
        # More channels cannot cost more; where samples say so, it is noise.
        falling = np.maximum.accumulate(np.asarray([*losses, 0.0])[::-1])[::-1]
        return Curve((*widths, group.units), tuple(float(loss) for loss in falling))

    return dict(zip((group.name for group in groups), each(curve_of, groups), strict=True))


def _at_most(batches: Sequence[Inputs], count: int) -> list[Inputs]:
    taken: list[Inputs] = []
    for batch in batches:
        if count <= 0:
            break
        taken.append(take_samples(batch, 0, min(count, sample_count(batch))))
        count -= sample_count(taken[-1])
    return taken
