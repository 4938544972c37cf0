"""What removing whole parts of a network came to, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from prunecli.report.energy_tables import change_rows
from prunecli.report.numbers import count, fixed, interval, macs
from prunecli.report.schema import Metrics
from prunecli.report.score_change import ScoreChange
from prunecli.report.table import Table


class _Macs(Protocol):
    @property
    def total(self) -> int: ...
    @property
    def uncounted(self) -> tuple[str, ...]: ...


class _PartFigures(Protocol):
    """What the tables read of a report."""

    @property
    def parts(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def present(self) -> int: ...
    @property
    def removed(self) -> Sequence[str]: ...
    @property
    def requested(self) -> float: ...
    @property
    def achieved(self) -> float: ...
    @property
    def scores(self) -> Mapping[str, float]: ...
    @property
    def params_before(self) -> int: ...
    @property
    def params_after(self) -> int: ...
    @property
    def macs_before(self) -> _Macs: ...
    @property
    def macs_after(self) -> _Macs: ...
    @property
    def verify_error(self) -> float: ...
    @property
    def recalibrated(self) -> int: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...


_SHOWN = 4
"""Names of attributes in the table; the manifest and `--json` have all of them, with their values."""


def part_table(
    report: _PartFigures,
    medians: Sequence[float],
    ratio: float,
    ratio_interval: tuple[float, float],
    energy: tuple[Metrics, Metrics] | None,
    score: ScoreChange | None = None,
) -> Table:
    """Figures before and after, with their ratios.

    Args:
        report: What was removed.
        medians: Milliseconds of the networks before and after.
        ratio: Of the latencies, timed in turns.
        ratio_interval: Its 95 % interval.
        energy: Firing and energy before and after, of a spiking network.
        score: The score of the task before and after, if it was measured.
    """
    before, after = report.macs_before, report.macs_after
    rows: list[tuple[str, ...]] = [
        (
            report.parts,
            str(report.present),
            str(report.present - len(report.removed)),
            f"{fixed(100 * report.achieved, 1)} % removed, {fixed(100 * report.requested, 1)} % requested",
        ),
        (
            "parameters",
            count(report.params_before),
            count(report.params_after),
            f"x{report.params_after / max(report.params_before, 1):.3f}",
        ),
        (
            "MACs",
            macs(before.total, before.uncounted),
            macs(after.total, after.uncounted),
            f"x{after.total / max(before.total, 1):.3f}",
        ),
        (
            "latency",
            f"{medians[0]:.2f} ms",
            f"{medians[1]:.2f} ms",
            f"x{ratio:.3f} {interval(*ratio_interval, digits=3)}",
        ),
        *([score.row()] if score is not None else []),
        *(change_rows(*energy) if energy else []),
        (f"difference to {report.reference}", "", f"{report.verify_error:.1e}", "verified"),
        ("normalisations recalibrated", "", str(report.recalibrated), ""),
    ]
    if report.attributes:
        names = list(dict.fromkeys(name.rpartition(".")[2] for name in report.attributes))
        shown = ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
        rows.append(("attributes changed", "", f"{len(report.attributes)}: {shown}", ""))
    uncounted = sorted({*before.uncounted, *after.uncounted})
    if uncounted:
        rows.append(("not counted in MACs", "", ", ".join(uncounted), ""))
    return Table(("figure", "before", "after", "ratio"), rows)


def score_table(report: _PartFigures) -> list[Table]:
    """The parts by score, those that went first; where they were named, these."""
    if not report.scores:
        return [Table((f"{report.parts} removed",), [(name,) for name in report.removed])]
    removed = set(report.removed)
    order = sorted(report.scores, key=lambda name: (name not in removed, report.scores[name]))
    rows = [(name, f"{report.scores[name]:.4g}", "removed" if name in removed else "") for name in order]
    return [Table((report.parts, "score", ""), rows, numeric=(1,))]
