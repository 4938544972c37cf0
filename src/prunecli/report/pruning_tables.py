"""What pruning came to, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from prunecli.report.energy_tables import change_rows
from prunecli.report.numbers import count, fixed, interval, macs
from prunecli.report.schema import Metrics
from prunecli.report.score_change import ScoreChange
from prunecli.report.table import Table


class _Target(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def requested(self) -> float: ...
    @property
    def achieved(self) -> float | None: ...


class _Macs(Protocol):
    @property
    def total(self) -> int: ...
    @property
    def uncounted(self) -> tuple[str, ...]: ...


class _Change(Protocol):
    @property
    def name(self) -> str: ...


class _Trial(Protocol):
    @property
    def compensation(self) -> str: ...
    @property
    def recalibrated(self) -> bool: ...
    @property
    def difference(self) -> float: ...
    @property
    def agreement(self) -> float | None: ...
    @property
    def chosen(self) -> bool: ...


class _Median(Protocol):
    @property
    def median(self) -> float: ...


class _Timing(Protocol):
    """What the table reads of networks that were timed in turns."""

    @property
    def timings(self) -> Sequence[_Median]: ...
    @property
    def ratios(self) -> Sequence[float]: ...
    @property
    def ratio_intervals(self) -> Sequence[tuple[float, float]]: ...


class _PruningFigures(Protocol):
    """What the table reads of a report of pruning."""

    @property
    def scope(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def target(self) -> _Target | None: ...
    @property
    def requested(self) -> float: ...
    @property
    def achieved(self) -> float: ...
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
    def compensated(self) -> int: ...
    @property
    def recalibrated(self) -> int: ...
    @property
    def attributes(self) -> Sequence[_Change]: ...
    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def free_outputs(self) -> Sequence[str]: ...


_REPAIRS = {"none": "none", "bias": "means (bias)", "ls": "regression (ls)", "reconstruct": "reconstruction"}
_SHOWN = 4
"""Names of attributes in the table; the manifest and `--json` have all of them, with their values."""


def pruning_table(
    report: _PruningFigures,
    timing: _Timing | None,
    energy: tuple[Metrics, Metrics] | None,
    score: ScoreChange | None = None,
) -> Table:
    """Figures before and after, with their ratios.

    Args:
        report: What was removed.
        timing: The networks before and after, timed in turns; None: they were not.
        energy: Firing and energy before and after, of a spiking network.
        score: The score of the task before and after, if it was measured.
    """
    before, after = report.params_before, report.params_after
    macs_before, macs_after = report.macs_before, report.macs_after
    requested = fixed(100 * report.requested, 1, " % requested")
    rows: list[tuple[str, ...]] = [("channels removed", requested, fixed(100 * report.achieved, 1, " %"), "")]
    if report.target is not None:
        reached = fixed(report.target.achieved, 3)
        rows = [
            ("channels removed", "", fixed(100 * report.achieved, 1, " %"), ""),
            (f"target: {report.target.name}", f"x{report.target.requested:.3f} requested", f"x{reached}", ""),
        ]
    rows += [
        ("allocation", "", report.scope if report.steps == 1 else f"{report.scope}, {report.steps} steps", ""),
        ("parameters", count(before), count(after), f"x{after / before:.3f}"),
        (
            "MACs",
            macs(macs_before.total, macs_before.uncounted),
            macs(macs_after.total, macs_after.uncounted),
            f"x{macs_after.total / max(macs_before.total, 1):.3f}",
        ),
        *(_latency_rows(timing) if timing is not None else []),
        *([score.row()] if score is not None else []),
        *(change_rows(*energy) if energy else []),
        ("difference to masked original", "", f"{report.verify_error:.1e}", "verified"),
        ("layers compensated", "", str(report.compensated), ""),
        ("normalisations recalibrated", "", str(report.recalibrated), ""),
    ]
    if report.free_outputs:
        rows.append(("outputs that keep their width", "", ", ".join(report.outputs), ""))
        rows.append(("outputs that may not", "", ", ".join(report.free_outputs), "--outputs"))
    if report.attributes:
        names = list(dict.fromkeys(change.name.rpartition(".")[2] for change in report.attributes))
        shown = ", ".join([*names[:_SHOWN], *(["..."] if len(names) > _SHOWN else [])])
        rows.append(("attributes changed", "", f"{len(report.attributes)}: {shown}", ""))
    uncounted = sorted({*macs_before.uncounted, *macs_after.uncounted})
    if uncounted:
        rows.append(("not counted in MACs", "", ", ".join(uncounted), ""))
    return Table(("figure", "before", "after", "ratio"), rows)


def _latency_rows(timing: _Timing) -> list[tuple[str, ...]]:
    before, after = (f"{one.median:.2f} ms" for one in timing.timings)
    return [("latency", before, after, f"x{timing.ratios[1]:.3f} {interval(*timing.ratio_intervals[1], digits=3)}")]


def trained_tables(figures: Mapping[str, object]) -> list[Table]:
    """Single figures of a method that pruned while it trained; no table if there are none."""
    rows = [
        (
            name.replace("_", " "),
            f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value,
        )
        for name, value in figures.items()
        if isinstance(value, (int, float, str))
    ]
    return [Table(("while training", "value"), rows, numeric=(1,))] if rows else []


def repair_tables(trials: Sequence[_Trial]) -> list[Table]:
    """The repairs that were compared, the best first; no table if there was nothing to compare."""
    if not trials:
        return []
    rows = [
        (
            _REPAIRS[trial.compensation] + (", new statistics" if trial.recalibrated else ""),
            f"{trial.difference:.4g}",
            fixed(100 * trial.agreement, 1, " %") if trial.agreement is not None else "",
            "chosen" if trial.chosen else "",
        )
        for trial in sorted(trials, key=lambda trial: (not trial.chosen, trial.difference))
    ]
    return [Table(("repair", "difference to dense", "same class", ""), rows)]


def reconstruction_tables(figures: Mapping[str, Any]) -> list[Table]:
    """What reconstruction could not do as well as it might; no table if there is nothing to say."""
    rows = []
    if figures.get("wanted_samples"):
        wanted: Mapping[str, int] = figures["wanted_samples"]
        widest = max(wanted, key=lambda name: wanted[name])
        layers = f"{widest} and {len(wanted) - 1} more" if len(wanted) > 1 else widest
        rows.append(
            (
                "more weights than samples determine",
                f"{layers}; {figures['samples']:,} samples were used, {wanted[widest]:,} would do "
                "(--calibration-images); until then they are held near what they were",
            )
        )
    if figures.get("too_wide"):
        rows.append(("too wide to solve, repaired by regression", ", ".join(figures["too_wide"])))
    return [Table(("reconstruction", ""), rows)] if rows else []


def scoring_tables(found: Mapping[str, Any]) -> list[Table]:
    """What a criterion found out besides scores; no table if there is nothing. Long lists are for `--json`."""
    rows: list[tuple[str, ...]] = []
    for name, value in found.items():
        if name == "score_histogram":  # for pictures
            continue
        entries = value.items() if isinstance(value, Mapping) else [("", value)] if not isinstance(value, list) else []
        rows += [(f"{name.replace('_', ' ')} {key}".strip(), _plain(entry)) for key, entry in entries]
    return [Table(("ranking", "value"), rows, numeric=(1,))] if rows else []


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def left_alone_tables(reasons: Mapping[str, str]) -> list[Table]:
    """Layers by the reason why they kept all or more of their width than was requested; no table if there are none."""
    if not reasons:
        return []
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    rows = [(str(len(names)), reason, ", ".join(names)) for reason, names in layers.items()]
    return [Table(("layers left alone", "why", "which"), rows, numeric=(0,))]
