"""What `prune auto` shows."""

from __future__ import annotations

from prunecli.report.auto import COST_NAMES, AutoReport, Trial
from prunecli.report.numbers import fixed, number_of
from prunecli.report.table import Table


def auto_tables(report: AutoReport) -> list[Table]:
    """Everything that was tried, what cannot be tried, and how the result does."""
    tables = [_tried(report)]
    if report.left_out:
        tables.append(Table(("left out", "reason"), list(report.left_out.items())))
    if report.claims:
        tables.append(_claims(report))
    return tables


def _tried(report: AutoReport) -> Table:
    figure, timed = report.figure, report.objective == "latency"
    costs = ("params", "MACs", *(("time",) if timed else ()))
    columns = ("no.", "setting", *costs, "before", "after", "drop", "what became of it")
    rows = [
        (
            str(trial.number),
            _setting(trial),
            *(_percent(share) for share in (trial.params_share, trial.macs_share)),
            *((_percent(trial.latency_share),) if timed else ()),
            fixed(trial.score, figure.digits),
            fixed(trial.after, figure.digits),
            fixed(trial.after_drop, figure.digits),
            trial.fate,
        )
        for trial in sorted(report.trials, key=lambda trial: _order(report, trial))
    ]
    title = (
        f"{figure.label} of {number_of(len(rows), 'network')}: before finetuning on {report.searched.images} training "
        f"samples, after it on {report.data.images} ({report.data.split})"
    )
    return Table(columns, rows, title=title, numeric=(0, *range(2, len(columns) - 1)))


def _setting(trial: Trial) -> str:
    """Criterion, scope and repair."""
    return f"{trial.criterion}, {trial.scope}, {trial.compensate}" + (", new statistics" if trial.recalibrate else "")


def _order(report: AutoReport, trial: Trial) -> tuple[bool, bool, float, int]:
    """The result first, then what was finetuned, then the others, each by cost."""
    return trial.number != report.winner, trial.after is None, trial.cost(report.objective), trial.number


def _claims(report: AutoReport) -> Table:
    figure = report.figure
    shown = report.trial(report.winner if report.winner is not None else report.nearest)
    assert shown is not None, "claims are about it"
    rows = []
    for claim in report.claims:
        interval = "-"
        if claim.interval is not None:
            interval = " to ".join(fixed(bound, figure.digits) for bound in claim.interval)
        used = "chose it" if claim.decided else "nothing was decided on"
        name = f"{claim.split}, {used}"
        scores = [fixed(value, figure.digits, figure.unit) for value in (claim.dense, claim.pruned)]
        rows.append((name, str(claim.images), *scores, fixed(claim.drop, figure.digits), interval))
    cost = f"{_percent(shown.cost(report.objective))} of the {COST_NAMES[report.objective]}"
    title = f"network {shown.number}, {cost}" + ("" if report.winner is not None else ": not within the drop")
    columns = ("samples", "number", f"{figure.label} dense", "pruned", "drop", "95 % interval")
    return Table(columns, rows, title=title, numeric=(1, 2, 3, 4, 5))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
