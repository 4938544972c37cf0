"""What `prune audit` shows."""

from __future__ import annotations

from collections.abc import Mapping

from prunecli.report.audit import Audit, Audited
from prunecli.report.numbers import fixed, interval, size
from prunecli.report.table import Table


def audit_tables(audit: Audit, seconds: Mapping[str, float]) -> list[Table]:
    """Methods beside exact ablation, how they agree with each other, and fusions of them.

    Args:
        audit: The report.
        seconds: Wall times by method.
    """
    order = sorted(audit.methods, key=lambda row: -2.0 if row.with_ablation.value is None else row.with_ablation.value)
    order.reverse()
    tables = [_methods(audit, order, seconds), _agreement(audit, order)]
    return [*tables, _fusions(audit)] if audit.fusions else tables


def _methods(audit: Audit, order: list[Audited], seconds: Mapping[str, float]) -> Table:
    columns = (
        "method", "rank correlation", "95 % interval", "p after Holm", "by layer mean", "undivided", "within layers",
        "halves", "units", "seconds", "peak memory",
    )  # fmt: skip
    rows = [
        (
            row.label,
            fixed(row.with_ablation.value),
            "-" if row.with_ablation.interval is None else interval(*row.with_ablation.interval),
            _p(row.with_ablation.p_holm),
            fixed(row.divided),
            fixed(row.undivided),
            fixed(row.within_layers),
            fixed(row.stability),
            str(row.units),
            fixed(seconds.get(row.label)),
            size(row.peak_memory_bytes),
        )
        for row in order
    ]
    halves, units = fixed(audit.ablation_halves), str(len(audit.ablations))
    rows.append(("ablation itself", "", "", "", "", "", "", halves, units, "", ""))
    data = audit.data
    title = f"scores and exact ablation of {len(audit.ablations)} units, {data.images} samples of {data.name}"
    return Table(columns, rows, title=title, numeric=tuple(range(1, len(columns))))


def _agreement(audit: Audit, order: list[Audited]) -> Table:
    labels = [row.label for row in order]
    rows = [(one, *(fixed(audit.agreement[one][other]) for other in labels)) for one in labels]
    title = f"rank correlation of two methods over all {audit.prunable_units} units"
    return Table(("agreement", *labels), rows, title=title, numeric=tuple(range(1, len(labels) + 1)))


def _fusions(audit: Audit) -> Table:
    rows = [
        (
            fusion.name,
            fixed(fusion.correlation),
            f"{fusion.best_member} {fixed(fusion.best_member_correlation)}",
            "-" if fusion.interval is None else interval(*fusion.interval),
            _p(fusion.p_holm),
            str(fusion.judged_on),
            "yes" if fusion.recommended else "no",
        )
        for fusion in audit.fusions
    ]
    columns = (
        "fusion of ranks", "rank correlation", "best member", "difference, 95 %", "p after Holm", "on units",
        "recommended",
    )  # fmt: skip
    return Table(columns, rows, numeric=(1, 3, 4, 5))


def _p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
