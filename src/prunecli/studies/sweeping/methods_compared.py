"""Which method of a sweep is best: its cells compared over seeds, with the tests of `prune compare --methods`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.errors import RecipeError
from prunecli.measure.rank_statistics import holm, paired_p
from prunecli.pipeline.sweep_cells import read_cells
from prunecli.report.numbers import number_of
from prunecli.report.scores import SCORES, Score
from prunecli.report.sweep import SweepHead, SweepRow, read_head
from prunecli.report.table import Table

_FEWEST_SEEDS = 2
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class MethodsCompared:
    """Methods at the same seeds and settings.

    Attributes:
        score: What they are judged by.
        seeds: The seeds at which all of them have all settings.
        settings: How many there are: ratios and whatever else changes.
        means: For each method, its mean over the settings at each seed.
        tests: For each pair, the mean difference and its p after Holm's procedure; None: no spread over seeds.
        left_out: Seeds of which a method lacks a setting.
    """

    score: Score
    seeds: tuple[Any, ...]
    settings: int
    means: Mapping[str, tuple[float, ...]]
    tests: Mapping[tuple[str, str], tuple[float, float | None]]
    left_out: tuple[Any, ...]

    @property
    def order(self) -> list[str]:
        """The methods, the best first."""
        return sorted(self.means, key=lambda name: -self.score.merit(statistics.fmean(self.means[name])))

    def tables(self) -> list[Table]:
        """Methods, and pairs of them."""
        rows = [
            (name, self.score.text(statistics.fmean(values)), f"{statistics.stdev(values):.{self.score.digits}f}")
            for name in self.order
            for values in (self.means[name],)
        ]
        columns = ("method", self.score.label, "deviation between seeds")
        pairs = [
            (*pair, f"{difference:+.{self.score.digits}f}", "no spread over seeds" if p is None else f"{p:.2g}")
            for pair, (difference, p) in self.tests.items()
        ]
        names = ("method", "other", "difference", "p (Holm)")
        return [Table(columns, rows, numeric=(1, 2)), Table(names, pairs, numeric=(2, 3))]

    def verdict(self) -> list[str]:
        """The result in words."""
        first, *others = self.order
        lines = [
            f"{first} is ahead: {self.score.label} {self.score.text(statistics.fmean(self.means[first]))}, mean of "
            f"{number_of(len(self.seeds), 'seed')} and {number_of(self.settings, 'setting')} of each"
        ]
        told: list[str] = []
        alike: list[str] = []
        untested: list[str] = []
        for other in others:
            difference, p = next(test for pair, test in self.tests.items() if set(pair) == {first, other})
            if p is None and difference:
                untested.append(other)
            else:
                (told if p is not None and p < _SIGNIFICANT else alike).append(other)
        if told:
            lines.append(f"it is better than {', '.join(told)} (paired t-test over seeds, p < 0.05 after Holm)")
        if alike:
            lines.append(f"it is not distinguishable from {', '.join(alike)} at {len(self.seeds)} seeds")
        if untested:
            lines.append(f"it is not tested against {', '.join(untested)}: no spread over seeds")
        if self.left_out:
            lines.append(f"left out, because not all cells are finished: seed {', '.join(map(str, self.left_out))}")
        return lines

    def document(self) -> dict[str, Any]:
        """Everything as plain data."""
        tests = [
            {"first": pair[0], "second": pair[1], "difference": difference, "p_holm": p}
            for pair, (difference, p) in self.tests.items()
        ]
        return {
            "figure": self.score.name,
            "seeds": list(self.seeds),
            "settings": self.settings,
            "methods": {name: list(values) for name, values in self.means.items()},
            "tests": tests,
            "verdict": self.verdict(),
        }


def compared_methods(folder: Path) -> MethodsCompared:
    """Compares the methods of a sweep that is finished or still running.

    Args:
        folder: Of the sweep.

    Raises:
        RecipeError: It has no axis of methods or none of seeds, no score, or fewer than two seeds with all cells.
    """
    return compared_rows(folder, read_head(folder), read_cells(folder))


def compared_rows(folder: Path, head: SweepHead, ended: Sequence[SweepRow]) -> MethodsCompared:
    """The same for cells that were read already; see `compared_methods`."""
    method = head.axis_of("method")
    seed = next((name for name, path in head.axes.items() if path == "seed"), None)
    if method is None or seed is None:
        raise RecipeError(
            f"{folder}: methods are compared over seeds, and this sweep has no axis of "
            f"{'methods' if method is None else 'seeds'}; `prune compare {folder}` compares its cells"
        )
    rows = [row for row in ended if row.status == "finished"]
    score = next((score for score in SCORES if any(score.name in row.figures for row in rows)), None)
    if score is None:
        raise RecipeError(f"{folder}: no finished cell has a score; the eval stage has to measure accuracy")
    values = _by_method_and_seed(rows, method, seed, score)
    methods = list(dict.fromkeys(name for name, _ in values))
    settings = {setting for own in values.values() for setting in own}
    seeds = list(dict.fromkeys(number for _, number in values))
    whole = [number for number in seeds if all(set(values.get((name, number), ())) == settings for name in methods)]
    if len(whole) < _FEWEST_SEEDS or len(methods) < 2:
        raise RecipeError(
            f"{folder}: {number_of(len(methods), 'method')} and {number_of(len(whole), 'seed')} at which every cell is "
            "finished; two of each are needed"
        )
    means = {name: tuple(statistics.fmean(values[name, number].values()) for number in whole) for name in methods}
    pairs = [(a, b) for index, a in enumerate(methods) for b in methods[index + 1 :]]
    adjusted = holm([paired_p(means[a], means[b]) for a, b in pairs])
    tests = {
        (a, b): (statistics.fmean(means[a]) - statistics.fmean(means[b]), p)
        for (a, b), p in zip(pairs, adjusted, strict=True)
    }
    left_out = tuple(number for number in seeds if number not in whole)
    return MethodsCompared(score, tuple(whole), len(settings), means, tests, left_out)


def _by_method_and_seed(
    rows: Sequence[SweepRow], method: str, seed: str, score: Score
) -> dict[tuple[str, Any], dict[str, float]]:
    """For each method at each seed, the score in each setting of the other axes."""
    values: dict[tuple[str, Any], dict[str, float]] = {}
    for row in rows:
        figure = row.figures.get(score.name)
        if figure is not None:
            others = {name: value for name, value in row.values.items() if name not in (method, seed)}
            own = values.setdefault((str(row.values[method]), row.values[seed]), {})
            own[json.dumps(others, sort_keys=True)] = float(figure)
    return values
