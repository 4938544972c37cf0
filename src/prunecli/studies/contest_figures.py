"""What a contest comes to: spreads over seeds, paired tests, how alike kept channels are, and a verdict in words."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from prunecli.checkpoint.manifest import as_json
from prunecli.measure.rank_statistics import has_spread, holm, paired_p
from prunecli.report.contest import Contender, Figure, PairTest, Spread
from prunecli.studies.bouts import Outcome
from prunecli.studies.entrants import Entrant

SIGNIFICANT = 0.05
_UNEQUAL = 0.01
"""Difference between methods, as a share of what is left, from which on it is no longer called equal."""


def contenders(
    entrants: Sequence[Entrant],
    outcomes: Sequence[Outcome],
    dense_params: int,
    dense_macs: int,
    *,
    one_network: bool = True,
) -> tuple[Contender, ...]:
    """Every method with all its seeds.

    Args:
        entrants: The methods.
        outcomes: Those of all methods at all seeds.
        dense_params: Parameters of the network before anything was removed.
        dense_macs: Its multiply-accumulates.
        one_network: Whether it is the same network at every seed: units of two networks have nothing to do with each
            other.
    """
    rows = []
    for entrant in entrants:
        own = [outcome for outcome in outcomes if outcome.label == entrant.label]
        cells = tuple(outcome.cell for outcome in own)
        after = [cell.after for cell in cells if cell.after is not None]
        between = itertools.combinations([outcome.kept for outcome in own], 2)
        rows.append(
            Contender(
                label=entrant.label,
                method=entrant.method.name,
                params=as_json(asdict(entrant.params)),
                params_share=spread([cell.params / dense_params for cell in cells]),
                macs_share=spread([cell.macs / max(dense_macs, 1) for cell in cells]),
                before=spread([cell.before for cell in cells]),
                after=spread(after) if after else None,
                kept_alike_between_seeds=_mean_jaccard(between if one_network else ()),
                cells=cells,
            )
        )
    return tuple(rows)


def pair_tests(rows: Sequence[Contender]) -> tuple[PairTest, ...]:
    """Student's paired test for every pair of methods, adjusted by Holm's procedure for the number of pairs."""
    pairs = list(itertools.combinations(rows, 2))
    scores = [(_scores(first), _scores(second)) for first, second in pairs]
    p_values = [paired_p(first, second) for first, second in scores]
    return tuple(
        PairTest(
            first=pair[0].label,
            second=pair[1].label,
            difference=spread([a - b for a, b in zip(*values, strict=True)]),
            p=p,
            p_holm=adjusted,
        )
        for pair, values, p, adjusted in zip(pairs, scores, p_values, holm(p_values), strict=True)
    )


def kept_alike(entrants: Sequence[Entrant], outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Jaccard similarity of what two methods keep at one seed, mean over seeds, by both labels."""
    kept = {(outcome.label, outcome.cell.seed): outcome.kept for outcome in outcomes}
    seeds = sorted({outcome.cell.seed for outcome in outcomes})
    return {
        a.label: {
            b.label: _mean_jaccard((kept[a.label, seed], kept[b.label, seed]) for seed in seeds) or 0.0
            for b in entrants
        }
        for a in entrants
    }


def jaccard(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Units that both keep, as a share of those that either keeps."""
    a, b = (torch.cat([kept[name] for name in first]) for kept in (first, second))
    return float((a & b).sum() / (a | b).sum())


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(mean=statistics.fmean(values), deviation=deviation)


def ranked(rows: Sequence[Contender], figure: Figure) -> list[Contender]:
    """The methods, best mean first: after training, or straight after removal if nothing was trained."""
    return sorted(rows, key=lambda row: (row.after or row.before).mean, reverse=not figure.lower_is_better)


def contest_verdict(
    rows: Sequence[Contender], tests: Sequence[PairTest], figure: Figure, steps: int, equal: str = "params"
) -> tuple[str, ...]:
    """The result in words: which method leads, what it can be distinguished from, and whether any beats random."""
    order = ranked(rows, figure)
    best, seeds = order[0], len(order[0].cells)
    when = f"after {steps} training steps" if steps else "straight after removal"
    score = best.after or best.before
    lines = [f"{best.label} is ahead {when}: {figure.label} {figure.text(score)} over {seeds} seeds"]
    told, alike, untested = _against(best.label, order[1:], tests)
    if told:
        lines.append(f"it is better than {', '.join(told)} (paired t-test over seeds, p < {SIGNIFICANT:g} after Holm)")
    if alike:
        lines.append(f"it is not distinguishable from {', '.join(alike)} at {seeds} seeds")
    if untested:
        fixed = [row.label for row in order if not has_spread(_scores(row))]
        cause = f"{', '.join(fixed)}: no spread over seeds" if fixed else "the difference is the same at every seed"
        lines.append(f"it is not tested against {', '.join(untested)} ({cause})")
    ahead = [row.label for row in rows if row.label != "random" and _beats(row, "random", rows, tests, figure)]
    if not ahead and any(test.p is not None for test in tests if "random" in (test.first, test.second)):
        lines.append(f"no method is shown to beat random here at {seeds} seeds")
    name, shares = "parameters", [row.params_share.mean for row in rows]
    if equal == "macs":
        name, shares = "MACs", [row.macs_share.mean for row in rows]
    if max(shares) - min(shares) > _UNEQUAL * max(shares):
        rounded = any(row.params.get("round_to") != 1 for row in rows)
        lines.append(
            f"{name} are not equal: {100 * min(shares):.1f} to {100 * max(shares):.1f} % are left, because "
            + ("widths are rounded; use --round-to 1" if rounded else "a channel has so many")
        )
    return tuple(lines)


def _against(
    best: str, others: Sequence[Contender], tests: Sequence[PairTest]
) -> tuple[list[str], list[str], list[str]]:
    """The other methods: those that differ significantly, those that do not, and those that are not tested."""
    told: list[str] = []
    alike: list[str] = []
    untested: list[str] = []
    for other in others:
        test = next(test for test in tests if {test.first, test.second} == {best, other.label})
        if test.p_holm is not None and test.p_holm < SIGNIFICANT:
            told.append(other.label)
        elif test.p_holm is not None:
            alike.append(f"{other.label} (p = {test.p_holm:.2g})")
        elif test.difference.mean:
            untested.append(other.label)
        else:
            alike.append(f"{other.label} (equal at every seed)")
    return told, alike, untested


def _beats(row: Contender, other: str, rows: Sequence[Contender], tests: Sequence[PairTest], figure: Figure) -> bool:
    """Whether a method is significantly better than another one."""
    test = next(test for test in tests if {test.first, test.second} == {row.label, other})
    rival = next(entry for entry in rows if entry.label == other)
    gain = (row.after or row.before).mean - (rival.after or rival.before).mean
    better = gain < 0 if figure.lower_is_better else gain > 0
    return better and test.p_holm is not None and test.p_holm < SIGNIFICANT


def _scores(row: Contender) -> list[float]:
    return [cell.after if cell.after is not None else cell.before for cell in row.cells]


def _mean_jaccard(pairs: Any) -> float | None:
    values = [jaccard(first, second) for first, second in pairs]
    return statistics.fmean(values) if values else None
