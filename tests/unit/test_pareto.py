"""Pareto fronts, and the best network under a condition."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.errors import GateFailed, RecipeError
from prunecli.report.comparison import Comparison, compare_reports
from prunecli.report.pareto import Choice, beaten_by, figures_of, pareto_front, score_of, with_fronts
from prunecli.report.pareto_tables import pareto_plot, pareto_tables
from prunecli.report.schema import DataInfo, Latency, Metrics, ModelInfo, Report
from prunecli.report.scores import score_named


def _report(
    fingerprint: str = "0", latency: float | None = None, wording: dict[str, Any] | None = None, **m: Any
) -> Report:
    time = Latency(median=latency, interval=(latency, latency), batch_size=1, runs=9) if latency is not None else None
    info = DataInfo(name="digits", split="test", images=9, fingerprint=fingerprint, **(wording or {}))
    model = ModelInfo(ref="cifar:resnet20", input_shape=(3, 32, 32))
    return Report(model=model, data=info, metrics=Metrics(latency_ms=time, **m))


def _compared(**reports: Report) -> Comparison:
    return with_fronts(compare_reports(list(reports), list(reports.values())))


DENSE = _report(top1=90.0, macs=100, params=10, latency=10.0)
SMALL = _report(top1=89.0, macs=50, params=5, latency=6.0)
WORSE = _report(top1=88.0, macs=60, params=6, latency=5.0)
TINY = _report(top1=80.0, macs=10, params=7, latency=2.0)


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3), st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1
    )
)
def test_a_front_is_what_nothing_dominates(points: dict[str, tuple[int, int]]) -> None:
    def dominated(name: str) -> bool:
        cost, merit = points[name]
        others = (points[other] for other in points if other != name)
        return any(c <= cost and m >= merit and (c, m) != (cost, merit) for c, m in others)

    front = pareto_front(points)
    assert set(front) == {name for name in points if not dominated(name)}
    costs = [points[name][0] for name in front]
    assert costs == sorted(costs)


def test_fronts_of_each_cost_and_who_beats_whom() -> None:
    comparison = _compared(dense=DENSE, small=SMALL, worse=WORSE, tiny=TINY)
    assert comparison.front == {
        "macs": ("tiny", "small", "dense"),
        "latency": ("tiny", "worse", "small", "dense"),
        "params": ("small", "dense"),
    }
    assert beaten_by(comparison, score_named("top1")) == {}  # worse is faster than small, tiny needs fewest MACs
    slower = WORSE.model_copy(update={"metrics": WORSE.metrics.model_copy(update={"latency_ms": None})})
    assert beaten_by(_compared(dense=DENSE, small=SMALL, worse=slower), score_named("top1")) == {"worse": "small"}
    rows = {row[0]: row for row in pareto_tables(comparison)[0].rows}
    assert rows["small"][-2:] == ("all", "") and rows["worse"][-2] == "latency"


def test_of_scores_that_should_be_low_the_low_ones_are_on_the_front() -> None:
    reports = [_report(perplexity=p, macs=m) for p, m in ((20.0, 100), (22.0, 50), (30.0, 60))]
    comparison = _compared(**dict(zip("abc", reports, strict=True)))
    assert comparison.front == {"macs": ("b", "a")}


def test_two_networks_or_scores_alone_make_no_front() -> None:
    assert _compared(a=DENSE, b=SMALL).front is None
    unscored = _report(macs=5)
    assert score_of(_compared(a=unscored, b=unscored, c=unscored)) is None
    with pytest.raises(RecipeError, match="at least three networks with a score"):
        pareto_plot(_compared(a=DENSE, b=SMALL))


def test_networks_judged_on_other_images_are_on_no_front_and_never_the_best() -> None:
    flattered = _report("1", top1=99.0, macs=1, params=1, latency=1.0)
    comparison = _compared(dense=DENSE, small=SMALL, tiny=TINY, flattered=flattered)
    assert comparison.judged_alike == ("dense", "small", "tiny")
    assert comparison.front is not None and not any("flattered" in names for names in comparison.front.values())
    best, failure = Choice("min latency where top1_drop < 2").of(comparison)
    assert best.best == "small" and failure is None
    assert any("flattered: it was not judged on what the baseline was" in note for note in best.notes)
    assert pareto_tables(comparison)[0].rows[-1][-2] == "judged on something else"
    assert pareto_tables(_compared(dense=DENSE, small=SMALL, tiny=TINY)) == []  # too few for a table of their own
    # Without a score in the question, everybody may be the answer.
    assert Choice("min latency").of(comparison)[0].best == "flattered"


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("min latency where top1_drop < 2.5", "worse"),
        ("max top1 where macs_ratio < 0.7", "small"),
        ("min params", "small"),
        ("max speedup where top1 >= 88 and params_ratio <= 0.5", "small"),
        ("min macs where latency < 0.55 or top1 > 89.5", "tiny"),
        ("max top1", "dense"),
        ("  min   latency_ms\n where not top1 < 90", "dense"),
    ],
)
def test_the_best_network(text: str, best: str) -> None:
    comparison, failure = Choice(text).of(_compared(dense=DENSE, small=SMALL, worse=WORSE, tiny=TINY))
    assert comparison.best == best and failure is None


def test_no_network_is_the_best_if_none_meets_the_condition() -> None:
    comparison, failure = Choice("min macs where top1 > 95").of(_compared(dense=DENSE, small=SMALL, tiny=TINY))
    assert comparison.best is None and isinstance(failure, GateFailed) and "top1 > 95" in str(failure)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smallest", "write min or max"),
        ("min latenzy", "did you mean 'latency'"),
        ("min macs where", "write min or max"),
        ("min macs where top1 >", "not a valid condition"),
        ("min macs where __import__('os')", "not a valid condition"),
        ("min macs where tpo1 > 3", "did you mean 'top1'"),
        ("min energy", "no network has energy"),
    ],
)
def test_questions_that_have_no_answer(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Choice(text).of(_compared(dense=DENSE, small=SMALL, tiny=TINY))


def test_networks_without_the_figure_are_left_out_and_named() -> None:
    blind = _report(top1=99.0, macs=1)
    comparison, _ = Choice("min latency").of(_compared(dense=DENSE, small=SMALL, blind=blind))
    assert comparison.best == "small" and "--best leaves out blind: it has no latency" in comparison.notes


def test_a_baseline_loses_nothing_and_is_as_large_as_itself() -> None:
    first = figures_of(_compared(dense=DENSE, small=SMALL, tiny=TINY))[0]
    assert (first["top1_drop"], first["macs_ratio"], first["latency"], first["energy_ratio"]) == (0.0, 1.0, 1.0, None)


def test_the_picture_is_the_same_each_time() -> None:
    comparison = _compared(dense=DENSE, small=SMALL, worse=WORSE, tiny=TINY)
    first, second = (pareto_plot(comparison, "svg") for _ in range(2))
    assert first == second and first.count(b"small") == 3


WORDINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "numbers": ({"classes": 10}, {"classes": 100}, "chose among 100 classes, the baseline among 10"),
    "order": (
        {"classes": 10, "class_list": "a"},
        {"classes": 10, "class_list": "b"},
        "its 10 classes have other names, or another order",
    ),
    "prompts": (
        {"templates": ("a photo of a {}.",)},
        {"templates": ("a photo of a {}.", "{}")},
        "was given 2 other prompts, the baseline 1, for instance '{}'",
    ),
}


@pytest.mark.parametrize("kind", WORDINGS)
def test_other_classes_and_prompts_are_said(kind: str) -> None:
    first, second, told = WORDINGS[kind]
    reports = [_report(wording=wording, top1=50.0, macs=9) for wording in (first, second)]
    notes = compare_reports(["a", "b"], reports).notes
    assert any(note.startswith(f"b: {told}") for note in notes)
    assert not any("b:" in note for note in compare_reports(["a", "b"], [reports[0]] * 2).notes)
    absent = _report(top1=50.0, macs=9)  # a report of an earlier version
    for pair in itertools.permutations([absent, reports[0]]):
        assert not any("classes" in note or "prompts" in note for note in compare_reports(["a", "b"], list(pair)).notes)
