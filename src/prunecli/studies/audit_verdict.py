"""What an audit comes to, in words."""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.report.audit import Audited, Difference, Fusion
from prunecli.report.numbers import interval

SIGNIFICANT = 0.05
_UNSTABLE = 0.8
_NOISY = 0.7


def leader(methods: Sequence[Audited], fusions: Sequence[Fusion] = ()) -> Audited | None:
    """The method that agrees best with the ablations, of those that do so better than chance.

    A method that is a fusion and does not beat its best member is none of them.
    """
    refused = {fusion.name for fusion in fusions if not fusion.recommended}
    candidates = [row for row in methods if beats_chance(row) and row.label not in refused]
    return max(candidates, key=lambda row: row.with_ablation.value or 0.0, default=None)


def beats_chance(row: Audited) -> bool:
    """Whether a method agrees with the ablations better than a random order does, after Holm's correction."""
    p = row.with_ablation.p_holm
    return row.method != "random" and p is not None and p < SIGNIFICANT


def verdict(
    methods: Sequence[Audited],
    differences: Sequence[Difference],
    fusions: Sequence[Fusion],
    ablation_halves: float | None,
) -> tuple[str, ...]:
    """Which method to use, what it can be distinguished from, and what to make of fusions.

    Args:
        methods: All methods.
        differences: The leading one and every other one.
        fusions: Judged on ablations that they were not fitted on.
        ablation_halves: Correlation of the ablations on the two halves of the samples.
    """
    lines = []
    best = leader(methods, fusions)
    if best is None:
        lines.append(_nothing(methods))
    else:
        found = best.with_ablation
        spread = "" if found.interval is None else f" {interval(*found.interval)}"
        how = " with --normalise none" if best.normalise == "none" and best.divided is not None else ""
        lines.append(
            f"use {best.label}{how}: its rank correlation with exact ablation is {found.value:.2f}{spread} over "
            f"{best.units} units"
        )
        if how:
            lines.append(f"divided by each layer's mean, the default, its scores agree less: {best.divided:.2f}")
        lines += _against(best, methods, differences)
        if best.needs_data and best.stability is not None and best.stability < _UNSTABLE:
            lines.append(
                f"{best.label} depends on the samples it sees ({best.stability:.2f} between two halves of them): "
                "give it more (--batches)"
            )
    if ablation_halves is not None and ablation_halves < _NOISY:
        lines.append(
            f"the ablations on two halves of the samples agree only at {ablation_halves:.2f}, so no method can be "
            "judged closely: give more samples (--batches)"
        )
    lines += _of_fusions(methods, fusions)
    return tuple(lines)


def _nothing(methods: Sequence[Audited]) -> str:
    refused = [row.label for row in methods if beats_chance(row)]
    if refused:
        return f"no criterion beats random here but {', '.join(refused)}, which is not better than its best member"
    known = [row for row in methods if row.method != "random" and row.with_ablation.value is not None]
    best = max(known, key=lambda row: row.with_ablation.value or 0.0, default=None)
    if best is None:
        return "no criterion beats random here: every unit costs the same, or every score is"
    p = best.with_ablation.p_holm
    tested = "" if p is None else f", p {_p(p)} after Holm"
    return (
        f"no criterion beats random here: the best, {best.label}, has a rank correlation of "
        f"{best.with_ablation.value:.2f} with exact ablation over {best.units} units{tested}"
    )


def _against(best: Audited, methods: Sequence[Audited], differences: Sequence[Difference]) -> list[str]:
    """What the leading method can be distinguished from."""
    by_label = {row.label: row for row in methods}
    told: list[str] = []
    alike: list[str] = []
    for difference in differences:
        if by_label[difference.second].method == "random":
            continue
        p = difference.p_holm
        found = p is not None and p < SIGNIFICANT and difference.difference > 0
        (told if found else alike).append(difference.second)
    lines = [f"it is better than a random order (p {_p(best.with_ablation.p_holm)} after Holm)"]
    if told:
        lines.append(f"it is better than {', '.join(told)} (paired bootstrap, p < {SIGNIFICANT:g} after Holm)")
    if alike:
        lines.append(f"this sample does not distinguish it from {', '.join(alike)}: more --units would")
    free = [label for label in alike if not by_label[label].needs_data and beats_chance(by_label[label])]
    if free and best.needs_data:
        verb = "needs" if len(free) == 1 else "need"
        lines.append(f"{', '.join(free)} {verb} no data")
    return lines


def _of_fusions(methods: Sequence[Audited], fusions: Sequence[Fusion]) -> list[str]:
    """Whether methods that are fusions, and fusions of methods, beat their best member."""
    labels = {row.label for row in methods}
    own = [fusion for fusion in fusions if fusion.name in labels]
    others = [fusion for fusion in fusions if fusion.name not in labels]
    lines = [fusion.reason if fusion.recommended else f"not recommended: {fusion.reason}" for fusion in own]
    good = [fusion for fusion in others if fusion.recommended]
    if good:
        return lines + [fusion.reason for fusion in good]
    if not others:
        return lines
    closest = max(others, key=lambda fusion: -2.0 if fusion.correlation is None else fusion.correlation)
    return [*lines, f"no fusion of these methods is recommended: {closest.reason}"]


def _p(p: float | None) -> str:
    return "< 0.001" if p is None or p < 0.001 else f"= {p:.3f}"
