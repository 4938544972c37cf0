"""Which of many networks nobody beats: Pareto fronts of a comparison, and the best network under a condition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunecli.errors import GateFailed, RecipeError, unknown
from prunecli.report.comparison import Candidate, Comparison
from prunecli.report.conditions import Condition
from prunecli.report.schema import METRIC_NAMES, Report
from prunecli.report.scores import SCORES, Score

_ENOUGH = 3
"""Networks from which on a front says more than the comparison itself."""


@dataclass(frozen=True)
class Cost:
    """Something a network should need little of.

    Attributes:
        name: On the command line and in documents.
        label: In tables and plots.
        figure: The ratio to the baseline that stands for it.
    """

    name: str
    label: str
    figure: str


COSTS = (
    Cost("macs", "MACs", "macs_ratio"),
    Cost("latency", "latency", "latency_ratio"),
    Cost("energy", "energy", "energy_ratio"),
    Cost("size", "file size", "size_ratio"),
    Cost("params", "parameters", "params_ratio"),
)
_SHORT = {cost.name: cost.figure for cost in COSTS if cost.name not in METRIC_NAMES} | {"memory": "peak_memory_ratio"}
"""Further names of figures in `--best`."""
_NOT_FIGURES = ("name", "metrics", "latency_ratio_interval")
_FIGURES = (
    *_SHORT,
    *METRIC_NAMES,
    "latency_ms",
    *(name for name in Candidate.model_fields if name not in _NOT_FIGURES),
)
_OF_SCORES = {"loss", "loss_rise", *(name for score in SCORES for name in (score.name, score.loss_name))}
_CHOICE = re.compile(r"\s*(?P<aim>min|max)\s+(?P<figure>\w+)(?:\s+where\s+(?P<condition>.+))?\s*", re.DOTALL)
_EXAMPLE = "min latency where top1_drop < 1"


Figures = Mapping[str, float | str | None]
"""Figures of one network by name, and its "name"."""


def figures_of(comparison: Comparison) -> list[Figures]:
    """Figures of every network, those of the baseline with ratios of one and drops of zero; absent ones are None."""
    base = comparison.baseline_metrics
    own = Candidate(
        name=comparison.baseline,
        metrics=base,
        **{
            name: (1.0 if name.endswith("_ratio") or name == "speedup" else 0.0)
            for name in _FIGURES
            if name in Candidate.model_fields and _measured(comparison, name)
        },
    )
    rows: list[Figures] = []
    for network in (own, *comparison.candidates):
        metrics = network.metrics
        ratios = {name: getattr(network, name) for name in _FIGURES if name in Candidate.model_fields}
        plain = {name: getattr(metrics, name) for name in METRIC_NAMES}
        latency = metrics.latency_ms.median if metrics.latency_ms else None
        short = {name: ratios[figure] for name, figure in _SHORT.items()}
        rows.append({"name": network.name, **plain, "latency_ms": latency, **ratios, **short})
    return rows


def figures_of_report(name: str, report: Report) -> Figures:
    """Figures of one network that is compared with none: what compares is None."""
    latency = report.metrics.latency_ms.median if report.metrics.latency_ms else None
    plain = {figure: getattr(report.metrics, figure) for figure in METRIC_NAMES}
    return {**dict.fromkeys(_FIGURES), **plain, "latency_ms": latency, "name": name}


def score_of(comparison: Comparison) -> Score | None:
    """The score that most networks have; None without any."""
    networks = [comparison.baseline_metrics, *(candidate.metrics for candidate in comparison.candidates)]
    counts = {score: sum(getattr(metrics, score.name) is not None for metrics in networks) for score in SCORES}
    best = max(counts, key=lambda score: counts[score])  # the first of equals, as the tables list them
    return best if counts[best] > 1 else None


def with_fronts(comparison: Comparison) -> Comparison:
    """The comparison with the Pareto front for each cost, if there are enough networks and a score."""
    score = score_of(comparison)
    if len(comparison.candidates) + 1 < _ENOUGH or score is None:
        return comparison
    rows = _comparable(comparison)
    fronts = {}
    for cost in COSTS:
        points = {
            str(row["name"]): (number(row, cost.figure), score.merit(number(row, score.name)))
            for row in rows
            if row[cost.figure] is not None and row[score.name] is not None
        }
        if len(points) >= _ENOUGH:
            fronts[cost.name] = pareto_front(points)
    return comparison.model_copy(update={"front": fronts or None})


def pareto_front(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names that no other one beats, the cheapest first; of equals all.

    Args:
        points: By name, a cost and a merit.
    """
    order = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    front: list[str] = []
    for name in order:
        if not front or points[name][1] > points[front[-1]][1] or points[name] == points[front[-1]]:
            front.append(name)
    return tuple(front)


def beaten_by(comparison: Comparison, score: Score) -> dict[str, str]:
    """For each network that another one beats or equals in everything both have, the first such network.

    Of two networks that are equal in everything neither beats the other.
    """
    rows = _comparable(comparison)
    result: dict[str, str] = {}
    for row in rows:
        for other in rows:
            if other is not row and _beats(other, row, score):
                result[str(row["name"])] = str(other["name"])
                break
    return result


class Choice:
    """What `--best` asks for: the lowest or highest figure among the networks that meet a condition.

    Args:
        text: For instance "min latency where top1_drop < 1".
        option: The option or the key that it comes from, for messages.

    Raises:
        RecipeError: It is not of that form, or names an unknown figure.
    """

    def __init__(self, text: str, option: str = "--best") -> None:
        match = _CHOICE.fullmatch(text)
        if match is None:
            raise RecipeError(
                f"{option} {text!r}: write min or max, a figure and a condition, for example {_EXAMPLE!r}"
            )
        self.text, self.lowest = " ".join(text.split()), match["aim"] == "min"
        self.figure, self._option = match["figure"], option
        if self.figure not in _FIGURES:
            raise RecipeError(f"{option}: {unknown('figure', self.figure, _FIGURES)}")
        condition = match["condition"]
        self._condition = Condition(condition, _FIGURES, option, _EXAMPLE) if condition is not None else None

    @property
    def needed(self) -> tuple[str, ...]:
        """The figures that it needs."""
        conditions = self._condition.named if self._condition is not None else ()
        return tuple(dict.fromkeys((self.figure, *conditions)))

    def known_of(self, figures: Figures) -> bool:
        """Whether a network has all figures that are needed."""
        return all(figures.get(name) is not None for name in self.needed)

    def met_by(self, figures: Figures) -> bool:
        """Whether a network that has the figures meets the condition."""
        return self._condition is None or self._condition.true_of(figures)

    def cost_of(self, figures: Figures) -> float:
        """What is to be as low as possible: the figure, or its negative if it is to be high."""
        return number(figures, self.figure) * (1 if self.lowest else -1)

    def of(self, comparison: Comparison) -> tuple[Comparison, GateFailed | None]:
        """The comparison with the best network in it, and a note on each network that could not be considered.

        Returns:
            The comparison, and the failure to raise once it is shown: no network meets the condition.

        Raises:
            RecipeError: The figure was measured of no network.
        """
        needed = self.needed
        known, notes = [], []
        judged = any(name in _OF_SCORES for name in needed)
        alike = {row["name"] for row in _comparable(comparison)}
        for row in figures_of(comparison):
            missing = next((name for name in needed if row[name] is None), None)
            if missing is not None:
                notes.append(f"{self._option} leaves out {row['name']}: it has no {missing}")
            elif judged and row["name"] not in alike:
                notes.append(f"{self._option} leaves out {row['name']}: it was not judged on what the baseline was")
            else:
                known.append(row)
        if not known:
            raise RecipeError(f"{self._option} {self.text!r}: no network has {' and '.join(needed)}")
        meeting = [row for row in known if self.met_by(row)]
        noted = comparison.model_copy(update={"notes": (*comparison.notes, *notes)})
        if not meeting:
            condition = self._condition.text if self._condition is not None else self.text
            return noted, GateFailed(f"{self._option}: no network meets {condition}")
        best = min(meeting, key=self.cost_of)
        return noted.model_copy(update={"best": best["name"]}), None

    def value(self, comparison: Comparison) -> float:
        """The figure of the best network of a comparison that has one."""
        return next(number(row, self.figure) for row in figures_of(comparison) if row["name"] == comparison.best)


def number(row: Figures, name: str) -> float:
    """A figure that was measured."""
    value = row[name]
    assert isinstance(value, (int, float)), name
    return float(value)


def _comparable(comparison: Comparison) -> Sequence[Figures]:
    """Figures of the networks whose scores can be compared with the baseline's."""
    alike = comparison.judged_alike
    return [row for row in figures_of(comparison) if alike is None or row["name"] in alike]


def _measured(comparison: Comparison, name: str) -> bool:
    return any(getattr(candidate, name) is not None for candidate in comparison.candidates)


def _beats(one: Figures, other: Figures, score: Score) -> bool:
    """Whether a network is at least as good in everything both were measured on, and better in something."""
    pairs = [(one[cost.figure], other[cost.figure]) for cost in COSTS]
    known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
    first, second = one[score.name], other[score.name]
    if not known or first is None or second is None:
        return False
    known.append((-score.merit(float(first)), -score.merit(float(second))))
    return all(a <= b for a, b in known) and any(a < b for a, b in known)
