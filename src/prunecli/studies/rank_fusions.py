"""Ranks of several criteria made into one, and the question whether that is better than the best of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap

import numpy as np

from prunecli.measure.rank_statistics import (
    Array,
    bootstrap_p_above,
    holm,
    percentile_interval,
    resampled_spearman,
    resamples,
    spearman,
)
from prunecli.report.audit import Fusion

FEWEST_ABLATIONS = 16
"""With fewer there is nothing left to judge on after fitting."""
FEWEST_JUDGED = 8
SIGNIFICANT = 0.05
_FITTED = 24
_FEWEST_MEMBERS = 2


def fusions(
    scores: Mapping[str, Sequence[float]], rises: Sequence[float], stability: Mapping[str, float | None], seed: int
) -> tuple[Fusion, ...]:
    """Three fusions of ranks: their mean, weighted by stability, and fitted to ablations by non-negative regression.

    The first ablations, 24 or half of them, are what the fitted one is fitted on; all three, and the members, are
    judged on the others.

    Args:
        scores: For each method, its scores of the ablated units; members that rank them all.
        rises: By how much the loss rises without each unit, in random order.
        stability: For each method, the correlation of its scores from two halves of the data.
        seed: Seed of the bootstrap.

    Returns:
        One for each kind, not yet decided on; none where there are fewer than two members or 16 ablations.
    """
    names = list(scores)
    if len(names) < _FEWEST_MEMBERS or len(rises) < FEWEST_ABLATIONS:
        return ()
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(scores[name]) for name in names]) / len(rises)
    fitted = min(_FITTED, len(rises) // 2)
    weights = {
        "simple": np.full(len(names), 1 / len(names)),
        "adaptive": _shares(np.array([max(stability[name] or 0.0, 0.0) for name in names])),
        "learned": _shares(regression_weights(ranks[:, :fitted], np.asarray(rises)[:fitted])),
    }
    others, costs = ranks[:, fitted:], np.asarray(rises)[fitted:]
    members = dict(zip(names, others, strict=True))
    return tuple(
        judged(
            kind,
            dict(zip(names, chosen.tolist(), strict=True)),
            chosen @ others,
            members,
            costs,
            fitted if kind == "learned" else 0,
            seed,
        )
        for kind, chosen in weights.items()
    )


def judged(
    name: str,
    weights: Mapping[str, float],
    scores: Array,
    members: Mapping[str, Array],
    rises: Array,
    fitted_on: int,
    seed: int,
) -> Fusion:
    """A fusion beside the best of its members, on ablations that it was not fitted on; see `decided` for the rest.

    Args:
        name: simple, adaptive, learned, or a method that is a fusion.
        weights: Of the members.
        scores: Its scores of the ablated units, shape (units,).
        members: Those of each member.
        rises: By how much the loss rises without each unit, shape (units,).
        fitted_on: How many other ablations decided the weights.
        seed: Seed of the bootstrap.
    """
    alone = {member: spearman(values, rises) for member, values in members.items()}
    best = max(alone, key=lambda member: -2.0 if alone[member] is None else alone[member] or 0.0)
    own, indices = spearman(scores, rises), resamples(len(rises), seed)
    gains = resampled_spearman(scores, rises, indices) - resampled_spearman(members[best], rises, indices)
    return Fusion(
        name=name,
        weights=dict(weights),
        fitted_on=fitted_on,
        judged_on=len(rises),
        correlation=own,
        best_member=best,
        best_member_correlation=alone[best],
        interval=percentile_interval(gains),
        p=bootstrap_p_above(gains),
        recommended=False,
        reason="",
    )


def decided(judged_ones: Sequence[Fusion]) -> tuple[Fusion, ...]:
    """Which of all fusions that were judged are recommended: several are tried, so p is adjusted for their number."""
    adjusted = holm([fusion.p for fusion in judged_ones])
    return tuple(starmap(_decided, zip(judged_ones, adjusted, strict=True)))


def regression_weights(ranks: Array, rises: Array) -> Array:
    """Weights of members, none negative, whose weighted ranks are nearest to the ranks of the ablations.

    Args:
        ranks: Shape (members, ablations).
        rises: Shape (ablations,).

    Returns:
        Shape (members,); all 0 where no member has to do with the ablations.
    """
    from scipy.optimize import nnls
    from scipy.stats import rankdata

    target = rankdata(rises) / len(rises)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    weights: Array = nnls(centred.T, target - target.mean())[0]
    return weights


def _shares(weights: Array) -> Array:
    total = weights.sum()
    shares: Array = weights / total if total > 0 else weights
    return shares


def _decided(fusion: Fusion, p_holm: float | None) -> Fusion:
    """A fusion with the adjusted p, whether it is to be recommended, and why."""
    name, own, alone = fusion.name, fusion.correlation, fusion.best_member_correlation or 0.0
    what = f"the {name} fusion" if name in ("simple", "adaptive", "learned") else name
    on = f"on {fusion.judged_on} ablations that it was not fitted on"
    recommended = False
    if own is None:
        reason = f"{what} ranks nothing: no member has to do with the ablations it was fitted on"
    else:
        against = f"{own:.2f} against {alone:.2f} of {fusion.best_member} alone"
        if own <= alone:
            reason = f"{what} does not beat its best member {on}: {against}"
        elif p_holm is None or p_holm >= SIGNIFICANT:
            tested = "" if p_holm is None else f", p = {p_holm:.2g} after Holm"
            reason = f"{what} is not distinguishable from its best member {on}: {against}{tested}"
        else:
            recommended = True
            reason = f"{what} beats its best member {on}: {against}, p = {p_holm:.2g} after Holm"
    return fusion.model_copy(update={"p_holm": p_holm, "recommended": recommended, "reason": reason})
