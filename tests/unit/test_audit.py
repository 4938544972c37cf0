"""What an audit concludes: verdicts for situations made up, fusions on data with a known answer, and real figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from prunecli.cli.output import Output
from prunecli.criteria.ablation import Unit
from prunecli.criteria.base import Calibration
from prunecli.criteria.enhanced import PARTS
from prunecli.errors import MethodError, RecipeError, VerificationError
from prunecli.measure.memory import peak_memory_bytes, peak_memory_of
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, PruneStage, Recipe
from prunecli.report.audit import Audit, Audited, Correlation, Difference, Fusion, read_audit
from prunecli.report.audit_plots import audit_plots
from prunecli.report.audit_tables import audit_tables
from prunecli.studies import audit_bench
from prunecli.studies.audit import AuditSettings, run_audit
from prunecli.studies.audit_figures import AuditFigures, Scored
from prunecli.studies.audit_verdict import leader, verdict
from prunecli.studies.entrants import Entrant, entrants
from prunecli.studies.rank_fusions import FEWEST_ABLATIONS, decided, fusions, regression_weights
from prunecli.surgery.groups import ChannelGroup


def _row(label: str, value: float, p_holm: float | None, **other: Any) -> Audited:
    fields: dict[str, Any] = {
        "params": {}, "units": 64, "normalise": "mean", "divided": value, "undivided": value, "gain_interval": None,
        "within_layers": None, "stability": 0.95, "needs_data": label not in ("l2", "random"),
        "peak_memory_bytes": 1, "left_out": {},
    }  # fmt: skip
    found = Correlation(value=value, interval=(value - 0.1, value + 0.1), p=p_holm, p_holm=p_holm)
    return Audited(label=label, method=label, with_ablation=found, **(fields | other))


def _difference(second: str, difference: float, p_holm: float | None) -> Difference:
    return Difference(first="fisher", second=second, difference=difference, interval=None, p_holm=p_holm)


def test_the_leader_is_named_with_what_it_can_be_told_from() -> None:
    rows = [_row("fisher", 0.7, 0.001), _row("taylor", 0.68, 0.001), _row("l2", 0.2, 0.3), _row("random", 0.9, None)]
    differences = [_difference("taylor", 0.02, 0.6), _difference("l2", 0.5, 0.01), _difference("random", -0.2, None)]
    assert leader(rows) is rows[0]  # whatever one random order happens to be
    lines = verdict(rows, differences, (), 0.9)
    assert lines == (
        "use fisher: its rank correlation with exact ablation is 0.70 [0.60, 0.80] over 64 units",
        "it is better than a random order (p = 0.001 after Holm)",
        "it is better than l2 (paired bootstrap, p < 0.05 after Holm)",
        "this sample does not distinguish it from taylor: more --units would",
    )


def test_a_criterion_without_data_is_pointed_out_where_it_does_as_well() -> None:
    rows = [_row("fisher", 0.4, 0.01), _row("l2", 0.38, 0.02), _row("lamp", 0.1, 0.4, needs_data=False)]
    lines = verdict(rows, [_difference("l2", 0.02, 0.9), _difference("lamp", 0.3, 0.09)], (), 0.9)
    assert lines[-1] == "l2 needs no data"


def test_nothing_beats_random() -> None:
    rows = [_row("fisher", 0.2, 0.3), _row("l2", 0.1, 0.6), _row("random", 0.15, None)]
    assert leader(rows) is None
    assert verdict(rows, (), (), 0.9) == (
        "no criterion beats random here: the best, fisher, has a rank correlation of 0.20 with exact ablation over 64 "
        "units, p = 0.300 after Holm",
    )
    flat = [row.model_copy(update={"with_ablation": Correlation(value=None)}) for row in rows]
    assert verdict(flat, (), (), None)[0].startswith("no criterion beats random here: every unit costs the same")


def test_noise_instability_and_another_form_are_said() -> None:
    row = _row("fisher", 0.7, 0.001, normalise="none", divided=0.1, stability=0.5)
    lines = verdict([row], (), (), 0.4)
    assert lines[0].startswith("use fisher with --normalise none: ")
    assert lines[1] == "divided by each layer's mean, the default, its scores agree less: 0.10"
    assert "depends on the samples it sees (0.50 between two halves" in lines[3]
    assert "agree only at 0.40" in lines[4] and lines[4].endswith("give more samples (--batches)")
    never_divided = _row("lamp", 0.7, 0.001, normalise="none", divided=None)
    assert verdict([never_divided], (), (), 0.9)[0].startswith("use lamp: ")


def _scores(noise: dict[str, float], count: int, seed: int = 0) -> tuple[dict[str, list[float]], list[float]]:
    """Members that are the ablation with noise of their own."""
    draw = np.random.default_rng(seed)
    rises = draw.normal(size=count)
    return {name: (rises + size * draw.normal(size=count)).tolist() for name, size in noise.items()}, rises.tolist()


def _fused(*arguments: Any, **named: Any) -> tuple[Fusion, ...]:
    return decided(fusions(*arguments, **named))


def _by_name(found: tuple[Fusion, ...]) -> dict[str, Fusion]:
    return {fusion.name: fusion for fusion in found}


def test_a_fusion_that_is_worse_than_its_best_member_is_refused() -> None:
    scores, rises = _scores({"good": 0.05, "bad": 30.0, "worse": 30.0}, 64)
    found = _by_name(_fused(scores, rises, dict.fromkeys(scores, 0.9), seed=0))
    simple = found["simple"]
    assert simple.best_member == "good" and not simple.recommended
    assert simple.reason.startswith("the simple fusion does not beat its best member on 40 ablations that it was not")
    lines = verdict([_row("good", 0.9, 0.001)], (), tuple(found.values()), 0.9)
    assert lines[-1].startswith("no fusion of these methods is recommended: the ")


def test_a_fusion_of_independent_members_is_recommended() -> None:
    scores, rises = _scores({"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5}, 400)
    found = _by_name(_fused(scores, rises, dict.fromkeys(scores, 0.9), seed=0))
    assert found["simple"].recommended and found["simple"].fitted_on == 0 and found["simple"].judged_on == 376
    assert found["learned"].fitted_on == 24
    lines = verdict([_row("a", 0.5, 0.001)], (), tuple(found.values()), 0.9)
    assert any(line.startswith("the simple fusion beats its best member on 376 ablations") for line in lines)


def test_a_fusion_that_leads_by_chance_is_refused() -> None:
    scores, rises = _scores({"a": 0.5, "b": 0.5}, 20, seed=1)
    found = _by_name(_fused(scores, rises, dict.fromkeys(scores, 0.9), seed=0))["simple"]
    assert found.correlation is not None and found.best_member_correlation is not None
    assert found.correlation > found.best_member_correlation and not found.recommended
    assert "is not distinguishable from its best member" in found.reason


def test_fusions_are_corrected_for_how_many_are_judged() -> None:
    scores, rises = _scores({"a": 1.5, "b": 1.5, "c": 1.5}, 120, seed=0)
    tried = fusions(scores, rises, dict.fromkeys(scores, 0.9), seed=0)
    simple = tried[0]
    assert simple.p is not None and 0.025 < simple.p < 0.05
    (alone,) = decided([simple])
    assert alone.recommended and alone.p_holm == simple.p
    together = _by_name(decided([simple.model_copy(update={"name": f"{k}"}) for k in range(3)]))["0"]
    assert together.p_holm == pytest.approx(3 * simple.p) and not together.recommended
    assert together.reason.endswith(f", p = {3 * simple.p:.2g} after Holm")


def test_a_learned_fusion_is_judged_on_what_it_was_not_fitted_on() -> None:
    scores, rises = _scores({"a": 1.0, "b": 1.0}, 64)
    found = _by_name(_fused(scores, rises, dict.fromkeys(scores, 0.9), seed=0))["learned"]
    tampered = rises[:24] + rises[24:][::-1]  # other ablations to be judged on
    again = _by_name(_fused(scores, tampered, dict.fromkeys(scores, 0.9), seed=0))["learned"]
    assert found.weights == again.weights and found.correlation != again.correlation


def test_weights_of_fusions() -> None:
    scores, rises = _scores({"stable": 1.0, "shaky": 1.0, "never": 1.0}, 40)
    found = _by_name(_fused(scores, rises, {"stable": 0.9, "shaky": 0.3, "never": None}, seed=0))
    assert found["simple"].weights == pytest.approx(dict.fromkeys(scores, 1 / 3))
    assert found["adaptive"].weights == pytest.approx({"stable": 0.75, "shaky": 0.25, "never": 0.0})
    assert sum(found["learned"].weights.values()) == pytest.approx(1)
    ranks = np.stack([np.arange(10.0), np.arange(10.0)[::-1]]) / 10
    assert regression_weights(ranks, np.arange(10.0)) == pytest.approx([1, 0])
    assert regression_weights(ranks[1:], np.arange(10.0)) == pytest.approx([0])  # never negative
    nothing = _by_name(_fused({"a": rises, "b": rises}, [-x for x in rises], {"a": 1.0, "b": 1.0}, seed=0))["learned"]
    assert nothing.correlation is None and not nothing.recommended and "ranks nothing" in nothing.reason


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_fusions_depend_on_order_alone(seed: int) -> None:
    scores, rises = _scores({"a": 1.0, "b": 2.0, "c": 0.5}, 32, seed)
    other = {"a": np.exp(scores["a"]).tolist(), "b": [7 * x + 3 for x in scores["b"]], "c": scores["c"]}
    stability = dict.fromkeys(scores, 0.8)
    assert fusions(scores, rises, stability, seed=1) == fusions(other, [x**3 for x in rises], stability, seed=1)


def _of_method(recommended: bool) -> Fusion:
    return Fusion(
        name="enhanced", weights={}, fitted_on=0, judged_on=40, correlation=0.7, best_member="gradient",
        best_member_correlation=0.6, interval=(-0.1, 0.2), recommended=recommended, reason="enhanced does not ...",
    )  # fmt: skip


def test_a_method_that_is_a_fusion_leads_only_if_it_beats_its_best_member() -> None:
    rows = [_row("enhanced", 0.7, 0.001), _row("fisher", 0.6, 0.001)]
    assert leader(rows, [_of_method(True)]) is rows[0] and leader(rows, [_of_method(False)]) is rows[1]
    lines = verdict(rows, [], [_of_method(False)], 0.9)
    assert lines[0].startswith("use fisher: ") and lines[-1] == "not recommended: enhanced does not ..."
    assert verdict(rows, [], [_of_method(True)], 0.9)[0].startswith("use enhanced: ")
    alone = verdict(rows[:1], [], [_of_method(False)], 0.9)
    assert alone[0].startswith("no criterion beats random here but enhanced, which is not better than its best member")


def test_a_method_is_judged_on_units_that_it_has_not_removed_itself() -> None:
    draw = np.random.default_rng(0)
    rises = draw.uniform(size=30).tolist()
    right, wrong = _layers(rises[:15], rises[15:]), _layers(rises[:15][::-1], rises[15:][::-1])
    whole = Scored(right, (right, right), {}, 0.1, 7, members={"good": right, "bad": wrong}, weights={"good": 1.0})
    taking_part = entrants("enhanced", {})
    units = [Unit(name, index) for name, group in right.items() for index in range(15)]
    scored = {"enhanced": whole, **{name: Scored(right, (right, right), {}, 0.1, 7) for name in ("l2", "random")}}
    (fusion,) = AuditFigures(taking_part, scored, units, rises, seed=0).fusions({})
    assert (fusion.name, fusion.judged_on, fusion.best_member) == ("enhanced", 30, "good")
    assert not fusion.recommended and "does not beat its best member on 30 ablations" in fusion.reason
    scored["enhanced"] = replace(whole, fitted_on=[("layer0", index) for index in range(15)])
    (fusion,) = AuditFigures(taking_part, scored, units, rises, seed=0).fusions({})
    assert (fusion.fitted_on, fusion.judged_on) == (15, 15)
    scored["enhanced"] = replace(whole, fitted_on=[(unit.group, unit.index) for unit in units[:25]])
    assert AuditFigures(taking_part, scored, units, rises, seed=0).fusions({}) == ()


def test_members_of_a_method_rank_alone() -> None:
    written = "enhanced:fusion=learned:ablations=8:hessian=false:cooperative=false:samples=32"
    entrant = entrants(written, {"min_width": 2})[0]
    members = entrant.members()
    assert list(members) == ["magnitude", "activation", "gradient"]
    for name, member in members.items():
        params: Any = member.params
        assert [part for part in PARTS if getattr(params, part)] == [name]
        assert params.fusion == "simple" and params.min_width == 2 and params.samples == 32 * (name != "magnitude")
    assert entrants("enhanced:hessian=no:cooperative=no:magnitude=no:activation=no", {})[0].members() == {}
    assert entrants("taylor", {})[0].members() == {}


def test_an_audit_of_a_method_that_is_a_fusion(tmp_path: Path) -> None:
    written = "enhanced:fusion=learned:ablations=8:hessian=false:cooperative=false"
    out = tmp_path / "a.json"
    report = run_audit(_space(), AuditSettings(written, units=24, batches=2), PruneStage(), out).audit
    (fusion,) = report.fusions
    assert fusion.name == written and set(fusion.weights) == {"magnitude", "activation", "gradient"}
    assert fusion.fitted_on == 8 and fusion.best_member in fusion.weights and 16 <= fusion.judged_on <= 24
    assert report.recommended != written or fusion.recommended


def test_too_little_for_a_fusion() -> None:
    scores, rises = _scores({"a": 1.0, "b": 1.0}, FEWEST_ABLATIONS - 1)
    assert fusions(scores, rises, dict.fromkeys(scores, 1.0), seed=0) == ()
    scores, rises = _scores({"a": 1.0}, 40)
    assert fusions(scores, rises, {"a": 1.0}, seed=0) == ()


def _figures(scores: dict[str, dict[str, Tensor]], rises: list[float], methods: str) -> AuditFigures:
    taking_part = entrants(methods, {})
    units = [Unit(name, index) for name, group in scores["l2"].items() for index in range(len(group))]
    scored = {
        entrant.label: Scored(scores[entrant.label], (scores[entrant.label], scores["l2"]), {}, 0.1, 7)
        for entrant in taking_part
    }
    return AuditFigures(taking_part, scored, units, rises, seed=0)


def _layers(*values: list[float]) -> dict[str, Tensor]:
    return {f"layer{k}": torch.tensor(row, dtype=torch.float64) for k, row in enumerate(values)}


def test_correlations_of_scores_as_prune_ranks_them() -> None:
    draw = np.random.default_rng(0)
    rises = draw.uniform(size=40)
    small, large = rises[:20].tolist(), (rises[20:] * 1000).tolist()
    scores = {
        "taylor": _layers(rises[:20].tolist(), rises[20:].tolist()),  # right over layers only as it is
        "fisher": _layers(small, large),  # right only after dividing, nearly
        "l2": _layers(draw.uniform(size=20).tolist(), draw.uniform(size=20).tolist()),
        "random": _layers(rises[:20].tolist(), rises[20:].tolist()),
    }
    rises[20:] *= 0.1
    scores["taylor"]["layer1"] *= 0.1
    figures = _figures(scores, rises.tolist(), "taylor,fisher")
    rows = {row.label: row for row in figures.methods()}
    taylor, fisher = rows["taylor"], rows["fisher"]
    assert taylor.normalise == "none" and taylor.undivided == pytest.approx(1) and (taylor.divided or 0) < 0.9
    divided = np.concatenate([np.array(small) / np.mean(small), np.array(large) / np.mean(large)])
    assert fisher.divided == pytest.approx(stats.spearmanr(divided, rises).statistic)
    assert fisher.undivided == pytest.approx(stats.spearmanr(small + large, rises).statistic)
    assert fisher.normalise == "mean" and fisher.with_ablation.value == fisher.divided
    assert fisher.within_layers == pytest.approx(1) and fisher.units == 40
    assert rows["random"].normalise == "mean" and rows["random"].with_ablation.p_holm is None
    raw_p = stats.spearmanr(divided, rises, alternative="greater").pvalue
    assert fisher.with_ablation.p == pytest.approx(2 * raw_p, rel=1e-6)
    assert fisher.stability is not None and fisher.stability < 0.9 and rows["l2"].stability == pytest.approx(1)
    agreement = figures.agreement()
    assert agreement["taylor"]["l2"] == agreement["l2"]["taylor"] and agreement["l2"]["l2"] == pytest.approx(1)


def test_groups_that_a_method_cannot_rank_do_not_count() -> None:
    draw = np.random.default_rng(1)
    rises = draw.uniform(size=30).tolist()
    scores = {
        "taylor": {"layer0": torch.tensor(rises[:15], dtype=torch.float64)},
        "l2": _layers(rises[:15], rises[15:]),
        "random": _layers(rises[:15], rises[15:]),
    }
    figures = _figures(scores, rises, "taylor")
    (taylor, l2, _) = figures.methods()
    assert taylor.units == 15 and taylor.with_ablation.value == pytest.approx(1) and l2.units == 30
    assert figures.fusions({"l2": 1.0}) == () and np.isnan(figures.sampled["taylor"][15:]).all()
    (against_l2, against_random) = figures.differences("taylor")
    assert against_l2.second == "l2" and against_l2.difference == pytest.approx(0) and against_l2.p_holm == 1
    assert against_random.second == "random" and against_random.p_holm is None


def test_peak_memory_is_that_of_what_lives_at_once() -> None:
    model = nn.Linear(10, 10, bias=False)

    def work() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second * 2
        third.add_(1)
        third.view(10, 100)

    assert peak_memory_of(work, model) == 4 * (100 + 2000)
    held: list[Tensor] = []
    assert peak_memory_of(lambda: held.append(torch.zeros(3, 5)), model) == 4 * (100 + 15)


def test_both_ways_of_counting_memory_agree() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    images = torch.randn(2, 3, 16, 16)

    @torch.no_grad()
    def forward() -> None:
        model(images)

    assert peak_memory_of(forward, model) == peak_memory_bytes(model, images)


def _space(**recipe: Any) -> Workspace:
    model = ModelSection(ref="cifar:resnet20")
    return Workspace(Recipe(model=model, data=DataSection(name="digits", batch_size=32), **recipe), Output("quiet"))


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    """A small audit of an untrained network."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("audit") / "a.json"
    settings = AuditSettings("taylor,activation:statistic=std", units=20, batches=2)
    return run_audit(_space(), settings, PruneStage(), out).audit, out


def test_a_report_holds_everything_and_reads_back(audit: tuple[Audit, Path]) -> None:
    report, out = audit
    assert read_audit(out) == report
    assert [row.label for row in report.methods] == ["taylor", "activation:statistic=std", "l2", "random"]
    assert len(report.ablations) == 20 and report.data.images == 64 and report.data.split == "train"
    assert report.verify_error < 1e-9 and report.prunable_units > 300
    for unit in report.ablations:
        assert unit.rise == pytest.approx(sum(unit.rise_by_half) / 2)
        assert set(unit.scores) == set(report.agreement)
    assert {fusion.name for fusion in report.fusions} == {"simple", "adaptive", "learned"}
    assert out.with_suffix(".seconds.json").is_file() and "seconds" not in report.document()
    stable = {row.label: row.stability for row in report.methods}
    assert 0 < (stable["taylor"] or 0) < 0.999  # two halves are not the same data
    assert stable["l2"] == pytest.approx(1) and abs(stable["random"] or 0) < 0.3


def test_pictures_and_tables(audit: tuple[Audit, Path]) -> None:
    pictures = audit_plots(audit[0])
    assert set(pictures) == {"ranks.png", "correlations.png", "agreement.png"}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    methods, agreement, fused = audit_tables(audit[0], {"taylor": 0.5})
    assert len(methods.rows) == 5 and methods.rows[-1][0] == "ablation itself"
    assert len(agreement.rows) == 4 and len(fused.rows) == 3


def test_groups_whose_removal_is_not_proven_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = audit_bench.verify

    def doubtful(original: nn.Module, pruned: nn.Module, traced: Any, keep: dict[str, Tensor], inputs: Any) -> float:
        if "layer1.0.conv1" in keep:
            raise VerificationError("off")
        return real(original, pruned, traced, keep, inputs)

    monkeypatch.setattr(audit_bench, "verify", doubtful)
    monkeypatch.setattr(audit_bench, "faulty_groups", lambda *arguments: {"layer1.0.conv1": "it is off"})
    report = run_audit(_space(), AuditSettings("l1", units=8, batches=1), PruneStage(), tmp_path / "a.json").audit
    assert report.left_out["layer1.0.conv1"] == "it is off"
    assert "layer1.0.conv1" not in {unit.group for unit in report.ablations}


def test_scores_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def undefined(model: nn.Module, groups: list[ChannelGroup], calibration: Calibration) -> dict[str, Tensor]:
        return {group.name: torch.full((group.units,), torch.nan, dtype=torch.float64) for group in groups}

    real = Entrant.__init__

    def broken(self: Entrant, label: str, method: Any, params: Any) -> None:
        real(self, label, _Undefined(method) if method.name == "l1" else method, params)

    class _Undefined:
        def __init__(self, method: Any) -> None:
            self.name, self.needs_data = method.name, False

        def load(self) -> Any:
            return undefined

    monkeypatch.setattr(Entrant, "__init__", broken)
    with pytest.raises(MethodError, match="its scores are not finite"):
        run_audit(_space(), AuditSettings("l1", units=8, batches=1), PruneStage(), tmp_path / "a.json")


def test_more_samples_than_half_of_them_are_refused_before_ablating(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(audit_bench.Bench, "ablation", lambda bench: pytest.fail("ablates"))
    with pytest.raises(RecipeError) as raised:
        run_audit(_space(), AuditSettings("enhanced:samples=33", 8, batches=2), PruneStage(), tmp_path / "a.json")
    assert str(raised.value) == (
        "--methods enhanced:samples=33: an audit scores halves of its 64 samples too, and one has 32; ask for at most "
        "32, or give more with --batches"
    )
    with pytest.raises(pytest.fail.Exception, match="ablates"):  # as many as a half has are no obstacle
        run_audit(_space(), AuditSettings("enhanced:samples=32", 8, batches=2), PruneStage(), tmp_path / "b.json")


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="--units 7: an order of so few says nothing"):
        AuditSettings("l1", units=7).check()
    with pytest.raises(RecipeError, match="--batches has to be at least 1"):
        AuditSettings("l1", batches=0).check()
    assert replace(AuditSettings("l1"), units=8).check() is None
