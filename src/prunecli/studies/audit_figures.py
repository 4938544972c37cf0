"""Figures of an audit: how well scores agree with ablations, with themselves on other data, and with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunecli.checkpoint.manifest import as_json
from prunecli.criteria.ablation import Unit
from prunecli.measure.rank_statistics import (
    Array,
    bootstrap_p,
    chance,
    holm,
    percentile_interval,
    resampled_spearman,
    resamples,
    spearman,
)
from prunecli.methods.allocation import comparable
from prunecli.report.audit import Audited, Correlation, Difference, Fusion
from prunecli.studies.entrants import Entrant
from prunecli.studies.rank_fusions import FEWEST_JUDGED, decided, fusions, judged

_FEWEST = 4


@dataclass(frozen=True)
class Scored:
    """What one method gives to the units of a network.

    Attributes:
        scores: From all data, by group, float64, shape (units,); groups that it cannot rank are missing.
        halves: The same from two halves of the data.
        left_out: Groups that it cannot rank, and why.
        seconds: Wall time with all data.
        peak_memory_bytes: With one batch.
        members: Scores of what a fusion makes one ranking of, each alone, by name.
        weights: What it weighs them by.
        fitted_on: Group and index of the units that it has removed itself to find these weights.
    """

    scores: dict[str, Tensor]
    halves: tuple[dict[str, Tensor], dict[str, Tensor]]
    left_out: dict[str, str]
    seconds: float
    peak_memory_bytes: int
    members: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    fitted_on: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Form:
    """How a method's scores of several layers are made one ranking, and what either form would give."""

    normalise: Literal["mean", "none"]
    undivided: float | None
    divided: float | None
    gain: tuple[float, float] | None
    entrant: Entrant

    def of(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(scores) if self.normalise == "none" else _comparable(self.entrant, scores)


class AuditFigures:
    """Agreement of methods with the ablations of sampled units.

    Args:
        entrants: The methods.
        scored: Their scores, by label.
        units: The sampled units.
        rises: By how much the loss rises without each of them.
        seed: Seed of the bootstrap.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        scored: Mapping[str, Scored],
        units: Sequence[Unit],
        rises: Sequence[float],
        seed: int,
    ) -> None:
        self._entrants, self._scored, self._units = entrants, scored, units
        self._rises, self._seed = np.asarray(rises), seed
        self._forms = {entrant.label: self._form(entrant, scored[entrant.label].scores) for entrant in entrants}
        self._ranked = {e.label: self._forms[e.label].of(scored[e.label].scores) for e in entrants}
        self.sampled = {label: _at(groups, units) for label, groups in self._ranked.items()}

    def methods(self) -> tuple[Audited, ...]:
        """A row for each method."""
        correlations = [
            self._correlation(self.sampled[label], tried=1 if form.divided is None else 2)
            for label, form in self._forms.items()
        ]
        adjusted = holm([
            None if entrant.method.name == "random" else found.p
            for entrant, found in zip(self._entrants, correlations, strict=True)
        ])  # fmt: skip
        return tuple(
            self._row(entrant, found.model_copy(update={"p_holm": p}))
            for entrant, found, p in zip(self._entrants, correlations, adjusted, strict=True)
        )

    def differences(self, best: str) -> tuple[Difference, ...]:
        """The difference in correlation between the method `best` and every other one, over the units both rank.

        Only those to other methods are tested: what random gives is known, and a single random order is not it.
        """
        others = [entrant.label for entrant in self._entrants if entrant.label != best]
        found = [self._difference(best, other) for other in others]
        random = {entrant.label for entrant in self._entrants if entrant.method.name == "random"}
        adjusted = holm([None if other in random else p for other, (_, _, p) in zip(others, found, strict=True)])
        return tuple(
            Difference(first=best, second=other, difference=difference, interval=interval, p_holm=p)
            for other, (difference, interval, _), p in zip(others, found, adjusted, strict=True)
        )

    def agreement(self) -> dict[str, dict[str, float | None]]:
        """Rank correlation of every two methods, over all units of the network that both rank."""
        return {
            a: {b: _agreement(first, second) for b, second in self._ranked.items()} for a, first in self._ranked.items()
        }

    def fusions(self, stability: Mapping[str, float | None]) -> tuple[Fusion, ...]:
        """Methods that are fusions themselves, and fusions of all others that rank every sampled unit but random.

        Args:
            stability: For each method, the correlation of its scores from two halves of the data.
        """
        own = {entrant.label for entrant in self._entrants if self._scored[entrant.label].members}
        complete = {
            entrant.label: self.sampled[entrant.label].tolist()
            for entrant in self._entrants
            if entrant.method.name != "random"
            and entrant.label not in own
            and not np.isnan(self.sampled[entrant.label]).any()
        }
        methods = (self._own_fusion(label) for label in self._scored if label in own)
        return decided([
            *(fusion for fusion in methods if fusion is not None),
            *fusions(complete, self._rises.tolist(), stability, self._seed),
        ])  # fmt: skip

    def _own_fusion(self, label: str) -> Fusion | None:
        """A method that is a fusion, beside its members, on units that it has not removed itself."""
        scored = self._scored[label]
        fitted = set(scored.fitted_on)
        members = {name: _at(scores, self._units) for name, scores in scored.members.items()}
        whole = {name: values for name, values in members.items() if not np.isnan(values).all()}
        known = ~np.isnan(np.stack([self.sampled[label], *whole.values()])).any(axis=0)
        known &= np.array([(unit.group, unit.index) not in fitted for unit in self._units])
        if known.sum() < FEWEST_JUDGED:
            return None
        return judged(
            label,
            scored.weights,
            self.sampled[label][known],
            {name: values[known] for name, values in whole.items()},
            self._rises[known],
            len(fitted),
            self._seed,
        )

    def _form(self, entrant: Entrant, scores: dict[str, Tensor]) -> _Form:
        """As the method's parameters say, or undivided where the interval of the difference is above 0."""
        raw = _at(scores, self._units)
        known = ~np.isnan(raw)
        undivided = spearman(raw[known], self._rises[known]) if known.sum() >= _FEWEST else None
        if entrant.params.normalise == "none":
            return _Form("none", undivided, None, None, entrant)
        own = _at(_comparable(entrant, scores), self._units)
        divided = spearman(own[known], self._rises[known]) if known.sum() >= _FEWEST else None
        if divided is None or undivided is None:
            return _Form("mean", undivided, divided, None, entrant)
        indices = resamples(int(known.sum()), self._seed)
        drawn = [resampled_spearman(values[known], self._rises[known], indices) for values in (raw, own)]
        gain = percentile_interval(drawn[0] - drawn[1])
        better = gain is not None and gain[0] > 0 and entrant.method.name != "random"
        return _Form("none" if better else "mean", undivided, divided, gain, entrant)

    def _row(self, entrant: Entrant, found: Correlation) -> Audited:
        own, scored, form = self.sampled[entrant.label], self._scored[entrant.label], self._forms[entrant.label]
        return Audited(
            label=entrant.label,
            method=entrant.method.name,
            params=as_json(asdict(entrant.params)),
            units=int((~np.isnan(own)).sum()),
            normalise=form.normalise,
            with_ablation=found,
            divided=form.divided,
            undivided=form.undivided,
            gain_interval=form.gain,
            within_layers=self._within_layers(own),
            stability=_agreement(*(form.of(half) for half in scored.halves)),
            needs_data=entrant.method.needs_data,
            peak_memory_bytes=scored.peak_memory_bytes,
            left_out=scored.left_out,
        )

    def _correlation(self, values: Array, tried: int) -> Correlation:
        known = ~np.isnan(values)
        values, rises = values[known], self._rises[known]
        if len(values) < _FEWEST:
            return Correlation(value=None)
        value = spearman(values, rises)
        drawn = resampled_spearman(values, rises, resamples(len(values), self._seed))
        interval = None if value is None else percentile_interval(drawn)
        p = chance(value, len(values))
        return Correlation(value=value, interval=interval, p=None if p is None else min(1.0, tried * p))

    def _difference(self, first: str, second: str) -> tuple[float, tuple[float, float] | None, float | None]:
        a, b = self.sampled[first], self.sampled[second]
        known = ~np.isnan(a) & ~np.isnan(b)
        a, b, rises = a[known], b[known], self._rises[known]
        if len(a) < _FEWEST:
            return 0.0, None, None
        indices = resamples(len(a), self._seed)
        drawn = resampled_spearman(a, rises, indices) - resampled_spearman(b, rises, indices)
        difference = (spearman(a, rises) or 0.0) - (spearman(b, rises) or 0.0)
        return difference, percentile_interval(drawn), bootstrap_p(drawn)

    def _within_layers(self, values: Array) -> float | None:
        """Mean correlation over layers, weighted with their sampled units."""
        total = weight = 0.0
        for name in dict.fromkeys(unit.group for unit in self._units):
            inside = np.array([unit.group == name for unit in self._units]) & ~np.isnan(values)
            if inside.sum() >= _FEWEST:
                correlation = spearman(values[inside], self._rises[inside])
                if correlation is not None:
                    total += correlation * inside.sum()
                    weight += inside.sum()
        return total / weight if weight else None


def _comparable(entrant: Entrant, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(scores, comparable(list(scores.values()), entrant.params), strict=True))


def _at(scores: Mapping[str, Tensor], units: Sequence[Unit]) -> Array:
    """Scores of some units, shape (units,); NaN for those that are not ranked."""
    return np.array([float(scores[unit.group][unit.index]) if unit.group in scores else np.nan for unit in units])


def _agreement(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    common = [name for name in first if name in second]
    if not common:
        return None
    return spearman(*(torch.cat([scores[name] for name in common]).numpy() for scores in (first, second)))
