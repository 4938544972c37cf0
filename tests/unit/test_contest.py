"""Methods compared: who takes part, equal parameters, kept sets, tests and verdicts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunecli.cli.options import plan_for_stage
from prunecli.cli.output import Output
from prunecli.errors import DataError, MethodError, ModelError, RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.methods.targets import Target
from prunecli.models.loading import load_reference, save
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.loader import Document
from prunecli.recipe.resolve import Override, resolve
from prunecli.recipe.schema import DataSection, FinetuneStage, ModelSection, PruneStage, Recipe
from prunecli.report.contest import Cell, Contender, Contest, Figure, PairTest, read_contest
from prunecli.report.contest_tables import contest_tables
from prunecli.studies.bouts import Outcome, Ring
from prunecli.studies.contest import ContestSettings, finished_contest, run_contest
from prunecli.studies.contest_figures import (
    contenders,
    contest_verdict,
    jaccard,
    kept_alike,
    pair_tests,
    ranked,
    spread,
)
from prunecli.studies.entrants import Entrant, as_written, entrants, shared_params

TOP1 = Figure(name="top1", label="top-1", unit=" %", digits=2, lower_is_better=False)
PERPLEXITY = Figure(name="perplexity", label="perplexity", unit="", digits=3, lower_is_better=True)


def test_l2_and_random_always_take_part() -> None:
    assert [entrant.label for entrant in entrants("fisher", {})] == ["fisher", "l2", "random"]
    assert [entrant.label for entrant in entrants("random,l1, l2", {})] == ["random", "l1", "l2"]


def test_options_of_one_method_and_of_all() -> None:
    std, mean, lamp, *_ = entrants("activation:statistic=std:round-to=4,activation,lamp", {"round_to": 1})
    assert (std.label, std.params.statistic, std.params.round_to) == ("activation:statistic=std:round-to=4", "std", 4)  # type: ignore[attr-defined]
    assert (mean.params.statistic, mean.params.round_to) == ("mean", 1)  # type: ignore[attr-defined]
    assert (lamp.params.normalise, lamp.params.round_to) == ("none", 1)  # its own default


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ("tailor", MethodError, "--methods: unknown method 'tailor': did you mean 'taylor'"),
        ("sca", MethodError, "--methods: method sca does not rank channels"),
        ("hybrid", MethodError, "hybrid decides itself how much each layer loses"),
        ("l1,,l2", RecipeError, "write names with commas"),
        ("", RecipeError, "write names with commas"),
        ("l1,l1", RecipeError, "l1 is named twice"),
        ("activation:std", RecipeError, "write options as METHOD:KEY=VALUE"),
        ("activation:statistics=std", RecipeError, "unknown key 'statistics'; did you mean 'statistic'"),
        ("activation:statistic=median", RecipeError, "has to be 'mean' or 'std'"),
        ("l1:ratio=0.3", RecipeError, "all methods remove equally much; leave ratio out"),
    ],
)
def test_who_cannot_take_part(methods: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        entrants(methods, {})
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_what_all_share_does_not_say_how_much() -> None:
    stage = PruneStage(params={"ratio": 0.3, "scope": "local", "min_width": 2})
    assert shared_params(stage) == {"scope": "local", "min_width": 2}


def _written(*params: tuple[str, Any]) -> dict[str, Any]:
    overrides = [Override(("stages", 0, "params", name), value, f"--{name}") for name, value in params]
    document = Document({"stages": [{"stage": "prune", "params": {"round_to": 1}}]}, "command line")
    return shared_params(as_written(resolve(document, overrides)))


def test_what_the_user_writes_reaches_methods_with_another_default() -> None:
    assert StructuralParams().normalise == "mean"
    assert _written() == {"round_to": 1} and _written(("normalise", "mean"))["normalise"] == "mean"
    assert _written(("min_width", 4)) == {"round_to": 1, "min_width": 4}
    assert entrants("lamp", _written())[0].params.normalise == "none"
    assert entrants("lamp", _written(("normalise", "mean")))[0].params.normalise == "mean"
    assert entrants("lamp:normalise=none", _written(("normalise", "mean")))[0].params.normalise == "none"


def test_what_a_recipe_writes_counts_for_its_stage_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: {ref: 'cifar:resnet20'}\nstages:\n  - {stage: finetune, lr: 0.1}\n"
        "  - {stage: prune, params: {normalise: mean}}\n"
    )
    plan = plan_for_stage(str(recipe), {"stage": "prune"}, [], {})
    assert shared_params(as_written(plan)) == {"normalise": "mean"}
    origins = {key: origin for key, _, origin in plan.rows() if origin != "default"}
    assert origins["stages.0.params.normalise"].endswith("r.yaml:4:40") and len(plan.recipe.stages) == 1


@pytest.mark.parametrize(
    ("settings", "networks", "message"),
    [
        ({"seeds": 1}, 1, "--seeds 1: differences are tested against how much they vary between seeds, so at least 2"),
        ({"params": 0.5, "macs": 0.5}, 1, "--params and --macs say how much to remove each in its own way"),
        ({"ratio": 1.5}, 1, "--ratio has to be between 0 and 1 (got 1.5)"),
        ({"params": 0.0}, 1, "--params has to be between 0 and 1"),
        ({"recover": -1}, 1, "--recover counts training steps"),
        ({"images": 0}, 1, "--images has to be at least 1"),
        ({"seeds": 3}, 2, "--seeds 3 and 2 networks: give one network, or one for each seed"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], networks: int, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        ContestSettings("l1", **settings).check(networks)
    assert message in str(raised.value)


def _kept(*masks: str) -> dict[str, Tensor]:
    return {f"layer{k}": torch.tensor([mark == "x" for mark in mask]) for k, mask in enumerate(masks)}


def test_jaccard_counts_units_of_all_layers() -> None:
    assert jaccard(_kept("xx..", "x."), _kept("x.x.", "x.")) == pytest.approx(2 / 4)
    assert jaccard(_kept("xx..", "x."), _kept("..xx", ".x")) == 0
    assert jaccard(_kept("xx..", "x."), _kept("xx..", "x.")) == 1


def _outcomes(scores: dict[str, list[float]], masks: dict[str, list[str]] | None = None) -> list[Outcome]:
    return [
        Outcome(
            label,
            Cell(seed=seed, params=50, macs=40, before=score - 10, after=score, figures_before={}, figures_after={}),
            _kept(masks[label][seed] if masks is not None else "x."),
        )
        for label, row in scores.items()
        for seed, score in enumerate(row)
    ]


def _rows(scores: dict[str, list[float]], masks: dict[str, list[str]] | None = None) -> tuple[Contender, ...]:
    return contenders(entrants(",".join(scores), {}), _outcomes(scores, masks), 100, 80)


def test_spreads_over_seeds() -> None:
    masks = {"l1": ["xx..", "xx..", "x.x."], "l2": ["x..x"] * 3, "random": ["..xx"] * 3}
    scores = {"l1": [90.0, 91.0, 92.0], "l2": [80.0] * 3, "random": [70.0] * 3}
    rows = _rows(scores, masks)
    assert rows[0].after == spread([90.0, 91.0, 92.0]) and rows[0].after.deviation == 1
    assert rows[0].before.mean == 81 and rows[0].params_share.mean == 0.5 and rows[0].macs_share.mean == 0.5
    assert rows[0].kept_alike_between_seeds == pytest.approx((1 + 2 * (1 / 3)) / 3)
    alike = kept_alike(entrants("l1,l2,random", {}), _outcomes(scores, masks))
    assert alike["l1"]["l1"] == 1 and alike["l1"]["l2"] == alike["l2"]["l1"] == pytest.approx(1 / 3)
    assert alike["l1"]["random"] == pytest.approx((0 + 0 + 1 / 3) / 3)


def _verdict(scores: dict[str, list[float]], figure: Figure = TOP1, steps: int = 40) -> tuple[str, ...]:
    rows = _rows(scores)
    return contest_verdict(rows, pair_tests(rows), figure, steps)


GOOD = {
    "fisher": [91.0, 91.4, 90.8, 91.2, 91.1],
    "taylor": [90.9, 91.6, 90.5, 91.3, 91.0],
    "l2": [85.0, 85.9, 84.1, 85.2, 85.5],
    "random": [80.2, 81.9, 79.0, 80.8, 81.0],
}


def test_a_verdict_tells_what_can_be_told_apart() -> None:
    lines = _verdict(GOOD)
    assert lines[0] == "fisher is ahead after 40 training steps: top-1 91.10 ± 0.22 % over 5 seeds"
    assert lines[1] == "it is better than l2, random (paired t-test over seeds, p < 0.05 after Holm)"
    assert lines[2].startswith("it is not distinguishable from taylor (p = ") and lines[2].endswith("at 5 seeds")
    assert len(lines) == 3


def test_where_less_is_better_the_lowest_leads() -> None:
    lines = _verdict(GOOD, PERPLEXITY)
    assert lines[0].startswith("random is ahead after 40 training steps: perplexity 80.580")
    assert lines[-1] == "no method is shown to beat random here at 5 seeds"
    assert [row.label for row in ranked(_rows(GOOD), PERPLEXITY)] == ["random", "l2", "taylor", "fisher"]


def test_what_is_the_same_at_every_seed_is_not_tested() -> None:
    lines = _verdict({"l1": [90.0, 90.0], "l2": [89.0, 89.0], "random": [70.0, 80.0], "lamp": [90.0, 90.0]})
    assert "it is not tested against l2 (l1, lamp, l2: no spread over seeds)" in lines
    assert any("lamp (equal at every seed)" in line for line in lines)
    assert lines[-1] == "no method is shown to beat random here at 2 seeds"
    steady = _rows({**GOOD, "l2": [85.0] * 5, "fisher": [91.0] * 5})  # five equal values are one sample
    tested = {(test.first, test.second): test.p for test in pair_tests(steady)}
    assert tested["fisher", "l2"] is None and tested["l2", "random"] is not None


def test_all_pairs_are_tested_and_corrected() -> None:
    tests = pair_tests(_rows(GOOD))
    assert len(tests) == 6 and {(test.first, test.second) for test in tests} >= {("fisher", "taylor"), ("l2", "random")}
    for test in tests:
        assert test.p is not None and test.p_holm is not None and test.p <= test.p_holm <= 6 * test.p + 1e-12
    worst = max(tests, key=lambda test: test.p or 0)
    assert worst.p == worst.p_holm


def test_unequal_parameters_are_said() -> None:
    rows = list(_rows(GOOD))
    rows[0] = rows[0].model_copy(update={"params_share": spread([0.55] * 5)})
    assert "parameters are not equal: 50.0 to 55.0 % are left" in contest_verdict(rows, pair_tests(rows), TOP1, 0)[-1]


def _space(network: Path | str, data: str = "digits", **section: Any) -> Workspace:
    model = ModelSection(weights=str(network)) if isinstance(network, Path) else ModelSection(ref=network)
    return Workspace(Recipe(model=model, data=DataSection(name=data, batch_size=64, **section)), Output("quiet"))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained networks for digits."""
    folder = tmp_path_factory.mktemp("networks")
    for seed in range(2):
        torch.manual_seed(seed)
        loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
        loaded.manifest.architecture.input_shape = (1, 8, 8)
        save(folder / f"{seed}.safetensors", loaded.model, loaded.manifest)
    return sorted(folder.glob("*.safetensors"))


_STAGE = PruneStage(params={"round_to": 1}, calibration_images=64)


def test_every_method_leaves_as_many_parameters(networks: list[Path], tmp_path: Path) -> None:
    settings = ContestSettings("l1:normalise=none", ratio=0.5, seeds=2, images=40)
    contest = run_contest([_space(networks[0])], settings, _STAGE, FinetuneStage(), tmp_path / "c.json")
    dense = contest.dense[0].params
    for row in contest.methods:
        for cell in row.cells:
            assert cell.params / dense == pytest.approx(contest.target_share, abs=0.01)
            assert cell.after is None
    space = _space(networks[0])
    alike = StructuralParams(ratio=0.5, scope="local", round_to=1)
    request = PruneRequest(method="l2", params=alike, example_inputs=space.inputs.example())
    assert contest.target_share == prune_structural(space.model().model, request).report.params_after / dense
    assert contest.data.images == 40 and contest.data.split == "validation"
    assert read_contest(tmp_path / "c.json") == contest
    _assert_resumed_alone(networks, settings, contest, tmp_path / "c.json")
    methods, pairs, alike = contest_tables(contest)
    assert len(methods.rows) == 4 and len(pairs.rows) == 3 and len(alike.rows) == 3
    assert methods.rows[0][0] == "as it is"


def _assert_resumed_alone(networks: list[Path], settings: ContestSettings, contest: Contest, out: Path) -> None:
    """Only the very comparison that was finished is shown when it is resumed."""
    spaces, finetune = [_space(networks[0])], FinetuneStage()
    assert finished_contest(spaces, settings, _STAGE, finetune, out) == contest
    other: list[tuple[Any, str]] = [
        ((spaces, replace(settings, methods="fisher"), _STAGE, finetune), "methods l1:normalise=none and fisher is"),
        ((spaces, replace(settings, ratio=0.4), _STAGE, finetune), "ratio 0.5 and 0.4 is asked for"),
        ((spaces, settings, replace(_STAGE, params={}), finetune), "prune.params.round_to 1 and its default is"),
        ((spaces, settings, _STAGE, replace(finetune, lr=0.5)), "finetune.lr its default and 0.5 is asked for"),
        (([_space(networks[0], image_size="16")], settings, _STAGE, finetune), "data.image_size"),
        (([_space(networks[1])], settings, _STAGE, finetune), "c.json: was finished with networks"),
    ]
    for arguments, message in other:
        with pytest.raises(RecipeError, match=re.escape(message)) as raised:
            finished_contest(*arguments, out)
        assert str(raised.value).endswith("add --force to start again, or choose another name")


def _same(first: Outcome, second: Outcome) -> bool:
    return first.cell == second.cell and jaccard(first.kept, second.kept) == 1


@pytest.mark.slow
def test_every_method_leaves_as_many_macs(networks: list[Path], tmp_path: Path) -> None:
    settings = ContestSettings("l1:normalise=none", macs=0.6, seeds=2, images=20)
    contest = run_contest([_space(networks[0])], settings, _STAGE, FinetuneStage(), tmp_path / "c.json")
    assert contest.target == "macs"
    for row in contest.methods:
        assert row.macs_share.mean == pytest.approx(0.6, abs=0.01)
    shares = [row.params_share.mean for row in contest.methods]
    assert max(shares) - min(shares) > 0.01 and "MACs are not equal" not in " ".join(contest.verdict)


def test_at_one_seed_all_get_the_same_samples_and_batches(networks: list[Path]) -> None:
    ring = Ring(_space(networks[0]), _STAGE, FinetuneStage(lr=0.05), 3, "test", 40)
    l1, _, random = entrants("l1", {"round_to": 1})
    target = Target("params", ring.share_left(0.5))
    first, other = ring.bout(l1, 0, target), ring.bout(random, 0, target)
    assert _same(first, ring.bout(l1, 0, target)) and not _same(first, other)  # whatever ran before
    assert ring.bout(l1, 1, target).cell.figures_after != first.cell.figures_after
    alone = Ring(_space(networks[0]), _STAGE, FinetuneStage(lr=0.05), 3, "test", 40)
    assert _same(alone.bout(random, 0, target), other)
    assert jaccard(ring.bout(random, 1, target).kept, other.kept) < 0.6


def test_several_networks_have_one_seed_each(networks: list[Path], tmp_path: Path) -> None:
    spaces = [_space(path) for path in networks]
    contest = run_contest(
        spaces, ContestSettings("l2", seeds=2, images=40), _STAGE, FinetuneStage(), tmp_path / "c.json"
    )
    assert all(row.kept_alike_between_seeds is None for row in contest.methods)  # units of two networks are no pairs
    assert len(contest.models) == len(contest.dense) == 2 and contest.models[0] != contest.models[1]
    other = _space("cifar:resnet32")
    with pytest.raises(ModelError, match="give networks of one architecture"):
        run_contest(
            [spaces[0], other], ContestSettings("l2", seeds=2, images=40), _STAGE, FinetuneStage(), tmp_path / "d.json"
        )


@pytest.mark.slow
def test_who_cannot_remove_as_much_is_left_out(networks: list[Path], tmp_path: Path) -> None:
    settings = ContestSettings("l1:max-ratio=0.1", seeds=2, images=20)
    contest = run_contest([_space(networks[0])], settings, _STAGE, FinetuneStage(), tmp_path / "c.json")
    assert [row.label for row in contest.methods] == ["l2", "random"] and len(contest.tests) == 1
    assert "cannot be reached" in contest.left_out["l1:max-ratio=0.1"]
    with pytest.raises(MethodError, match="cannot be reached"):  # not even by l2
        run_contest([_space(networks[0])], replace(settings, params=0.01), _STAGE, FinetuneStage(), tmp_path / "d.json")


def test_what_else_goes_wrong_is_no_reason_to_leave_a_method_out(
    networks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ContestSettings("l1:normalise=none", seeds=2, images=20)
    real = Ring.bout

    def broken(self: Ring, entrant: Entrant, *arguments: Any) -> Outcome:
        if entrant.method.name == "l1":
            raise MethodError("its scores are not finite")
        return real(self, entrant, *arguments)

    monkeypatch.setattr(Ring, "bout", broken)
    with pytest.raises(MethodError, match="its scores are not finite"):
        run_contest([_space(networks[0])], settings, _STAGE, FinetuneStage(), tmp_path / "c.json")


def test_without_labels_there_is_nothing_to_judge_by(networks: list[Path], tmp_path: Path) -> None:
    no_data = Workspace(Recipe(model=ModelSection(ref="cifar:resnet20")), Output("quiet"))
    with pytest.raises(DataError, match="no data set"):
        run_contest([no_data], ContestSettings("l1"), _STAGE, FinetuneStage(), tmp_path / "c.json")


def test_a_table_of_many_methods_shows_the_pairs_that_matter() -> None:
    scores = {name: [90.0 + k, 90.5 - k] for k, name in enumerate(("l1", "taylor", "fisher", "lamp", "wanda", "l2"))}
    rows = _rows({**scores, "random": [80.0, 81.0]})
    tests = pair_tests(rows)
    alike = {a.label: {b.label: 1.0 for b in rows} for a in rows}
    contest = Contest.model_construct(
        settings={"recover": 40}, figure=TOP1, methods=rows, tests=tests, kept_alike=alike, left_out={}, verdict=(),
        seed=0, dense=(), models=(), target="params", target_share=0.5, data=None, environment={}, command="",
    )  # fmt: skip
    from prunecli.report.contest_tables import _pairs

    shown = _pairs(contest).rows
    assert len(tests) == 21 and len(shown) < 21
    assert sum("random" in row[0] for row in shown) == 6
    assert isinstance(tests[0], PairTest)
