"""How many units stay, decided by the scores themselves instead of a ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.collective import each
from prunecli.criteria.ablation import Ablation, Unit
from prunecli.criteria.base import Calibration
from prunecli.criteria.samples import SomeSamples, half_of
from prunecli.errors import MethodError
from prunecli.methods.allocation import Allocation
from prunecli.methods.params import TARGETS, StructuralParams
from prunecli.naming import give_data, option
from prunecli.surgery.groups import ChannelGroup, dropped_units

ABLATIONS = 24
"""Units that are removed one by one to tell what a score costs."""
_SPREAD = ((2.5, 0.7), (1.5, 0.8))
_OTHERWISE = 0.9
_TRIALS = 24
_MEASURED = 8


def retention_of(params: StructuralParams, *, data: bool) -> str | None:
    """The rule in place of a ratio, "epsilon" or "cv-legacy"; None if a ratio or a target decides.

    Args:
        params: The method's parameters.
        data: Whether there is calibration data.

    Raises:
        MethodError: Settings exclude each other, or the rule needs data and there is none.
    """
    rule, epsilon = getattr(params, "retention", "ratio"), getattr(params, "epsilon", None)
    if epsilon is not None and rule != "epsilon":
        raise MethodError(f"{option('epsilon')} belongs to {option('retention', 'epsilon')}; add that, or leave it out")
    if rule == "ratio":
        return None
    if rule == "epsilon" and epsilon is None:
        raise MethodError(
            f"{option('retention', rule)} needs {option('epsilon')}, the rise of the loss that is allowed, such as 0.05"
        )
    if rule == "epsilon" and not data:
        raise MethodError(
            f"{option('retention', rule)} measures the loss without units: {give_data()}; cv-legacy needs none"
        )
    others = [option(kind) for kind in TARGETS if getattr(params, kind) is not None]
    others += [option("layer_ratio")] if params.layer_ratio else []
    others += [option("ratio", params.ratio)] if params.ratio != StructuralParams.ratio else []
    asked = option("retention", rule)
    if others:
        raise MethodError(f"{asked} decides how much to remove, and so does {others[0]}; give one of them")
    if params.schedule != "once":
        raise MethodError(f"{asked} decides once; leave out {option('schedule', params.schedule)}")
    return str(rule)


def ratios_by_variation(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of each group's units that goes by the rule of an older tool, kept to compare with.

    With the scores' coefficient of variation cv above 2.5, the fewest units stay that hold 70 % of the group's summed
    scores; above 1.5, 80 %; else 90 %, which that tool called conservative and gave no number for.

    Args:
        scores: By group name, shape (units,), none negative.
    """
    return {name: _ratio_by_variation(values) for name, values in scores.items()}


def _ratio_by_variation(values: Tensor) -> float:
    mean = float(values.mean())
    if mean <= 0:
        return 0.0
    cv = float(values.std(correction=0)) / mean
    share = next((share for least, share in _SPREAD if cv > least), _OTHERWISE)
    held = values.sort(descending=True).values.cumsum(dim=0) / values.sum()
    kept = int((held < share - torch.finfo(values.dtype).eps * len(values)).sum()) + 1
    return 1 - min(kept, len(values)) / len(values)


class LossBound:
    """The smallest network whose loss is predicted, and then measured, to rise by no more than epsilon.

    24 units, evenly spread over the ranking, are removed one by one. Isotonic regression makes a unit's score the rise
    that it stands for, and rises add up to the prediction for a set. The largest set within the bound is removed on
    trial and measured, before any compensation; if it costs more, smaller ones are, until one is within the bound.

    Args:
        network: The network.
        groups: Its groups.
        scores: By group name, shape (units,).
        calibration: Data and loss.
        normalise: "mean" if each group's scores are divided by their mean before they are ranked, else "none".

    Attributes:
        found: What was predicted and measured, as plain data.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, Tensor],
        calibration: Calibration,
        normalise: str,
    ) -> None:
        data = SomeSamples.of(calibration, 0, option("retention", "epsilon"))
        self._groups = groups
        self._ablation = Ablation(network, groups, (half_of(data, 0), half_of(data, 1)))
        self._costs = self._predicted_costs(scores, normalise)
        self.found: dict[str, Any] = {"loss_before": round(self._ablation.baseline, 6)}

    def _predicted_costs(self, scores: Mapping[str, Tensor], normalise: str) -> dict[str, Tensor]:
        from sklearn.isotonic import IsotonicRegression  # slow to import, and rarely needed

        tiny = torch.finfo(torch.float64).tiny
        values = {
            group.name: scores[group.name] / (scores[group.name].mean().clamp_min(tiny) if normalise == "mean" else 1.0)
            for group in self._groups
        }
        units = [Unit(name, index) for name, own in values.items() for index in range(len(own))]
        order = torch.cat(list(values.values())).argsort(stable=True)
        count = min(ABLATIONS, len(units))
        places = ((torch.arange(count) + 0.5) * (len(units) / count)).long()
        chosen = [units[place] for place in order[places].tolist()]
        rises = each(lambda unit: self._mean(self._ablation.rises(unit)), chosen)
        curve = IsotonicRegression(y_min=0.0, out_of_bounds="clip")
        curve.fit([float(values[unit.group][unit.index]) for unit in chosen], rises)
        return {name: torch.from_numpy(curve.predict(own.numpy())) for name, own in values.items()}

    def _mean(self, rises: tuple[float, float]) -> float:
        counts = self._ablation.samples
        return sum(rise * count for rise, count in zip(rises, counts, strict=True)) / sum(counts)

    def predicted(self, allocation: Allocation) -> float:
        """The rise that is predicted for what an allocation drops."""
        return sum(
            float(self._costs[group.name][dropped_units(group, allocation.keep[group.name])].sum())
            for group in self._groups
        )

    def measured(self, allocation: Allocation) -> float:
        """The rise without what an allocation drops."""
        return self._mean(self._ablation.rises_with(allocation.keep))

    def reach(self, epsilon: float, plan: Callable[[float], Allocation]) -> Allocation:
        """The allocation that keeps the fewest units within the bound.

        Args:
            epsilon: The rise of the mean loss of a sample that is allowed.
            plan: From a channel ratio to what stays where.
        """
        ratio = _largest(lambda share: self.predicted(plan(share)) <= epsilon, 1.0, _TRIALS)
        allocation = plan(ratio)
        rise = self.measured(allocation)
        if rise > epsilon:
            ratio = _largest(lambda share: self.measured(plan(share)) <= epsilon, ratio, _MEASURED)
            allocation = plan(ratio)
            rise = self.measured(allocation)
        self.found |= {"predicted_rise": round(self.predicted(allocation), 6), "measured_rise": round(rise, 6)}
        return allocation


def _largest(holds: Callable[[float], bool], most: float, trials: int) -> float:
    """By bisection, the largest share up to `most` for which something holds; 0 is taken to be one."""
    if holds(most):
        return most
    low, high = 0.0, most
    for _ in range(trials):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
