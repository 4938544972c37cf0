"""What `prune compare --methods` shows."""

from __future__ import annotations

from statistics import fmean, stdev

from prunecli.report.contest import Contender, Contest, PairTest, Spread
from prunecli.report.numbers import count, fixed
from prunecli.report.table import Table

_MOST_PAIRS = 15


def contest_tables(contest: Contest) -> list[Table]:
    """Methods by what they come to, pairs with their tests, and how alike the kept channels are."""
    return [_methods(contest), _pairs(contest), _alike(contest)]


def _methods(contest: Contest) -> Table:
    steps, label = contest.settings["recover"], contest.figure.label
    trained = contest.methods[0].after is not None
    before = f"{label} straight after"
    columns = ("method", "parameters", "MACs", before, *((f"{label} after {steps} steps",) if trained else ()))
    dense = contest.dense
    own = [network.score for network in dense]
    scores = contest.figure.text(Spread(mean=fmean(own), deviation=stdev(own) if len(own) > 1 else 0.0))
    rows = [("as it is", count(dense[0].params), count(dense[0].macs), scores, *((scores,) if trained else ()))]
    rows += [
        (
            row.label,
            _percent(row.params_share),
            _percent(row.macs_share),
            contest.figure.text(row.before),
            *((contest.figure.text(row.after),) if row.after is not None else ()),
        )
        for row in _best_first(contest)
    ]
    data = contest.data
    title = f"{len(contest.methods[0].cells)} seeds, {data.images} samples of {data.name} ({data.split})"
    return Table(columns, rows, title=title, numeric=tuple(range(1, len(columns))))


def _pairs(contest: Contest) -> Table:
    """All pairs; of many methods those with the best one, l2 or random."""
    order = [row.label for row in _best_first(contest)]
    tests = [test if order.index(test.first) < order.index(test.second) else _turned(test) for test in contest.tests]
    tests.sort(key=lambda test: (order.index(test.first), order.index(test.second)))
    if len(tests) > _MOST_PAIRS:
        tests = [test for test in tests if {test.first, test.second} & {order[0], "l2", "random"}]
    rows = [
        (
            f"{test.first} - {test.second}",
            contest.figure.text(test.difference),
            "no spread over seeds" if test.p is None else _p(test.p),
            _p(test.p_holm),
        )
        for test in tests
    ]
    return Table(
        (f"pair, {contest.figure.label}", "difference", "p, paired t-test", "p after Holm"), rows, numeric=(1, 2, 3)
    )


def _alike(contest: Contest) -> Table:
    order = _best_first(contest)
    labels = [row.label for row in order]
    rows = [
        (
            row.label,
            *(fixed(contest.kept_alike[row.label][other]) for other in labels),
            fixed(row.kept_alike_between_seeds),
        )
        for row in order
    ]
    return Table(("kept by both / by either", *labels, "between seeds"), rows, numeric=tuple(range(1, len(labels) + 2)))


def _best_first(contest: Contest) -> list[Contender]:
    lower = contest.figure.lower_is_better
    return sorted(contest.methods, key=lambda row: (row.after or row.before).mean, reverse=not lower)


def _turned(test: PairTest) -> PairTest:
    difference = Spread(mean=-test.difference.mean, deviation=test.difference.deviation)
    return test.model_copy(update={"first": test.second, "second": test.first, "difference": difference})


def _percent(spread: Spread) -> str:
    return f"{100 * spread.mean:.1f} %"


def _p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
