"""Sweeps without running any: what axes mean, how cells are called, which are drawn, and what is best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunecli.errors import PruneError
from prunecli.recipe.axes import Setting, settings_of
from prunecli.recipe.sweep_file import Axis, Range, load_sweep, sweep_json_schema
from prunecli.report.pareto import Choice
from prunecli.report.sweep import SweepHead, SweepRow, read_lines
from prunecli.studies.sweeping.cells import Cell, CellMaker
from prunecli.studies.sweeping.methods_compared import MethodsCompared, compared_rows
from prunecli.studies.sweeping.outcome import groups_of, outcome_of
from prunecli.studies.sweeping.search import drawn, grid
from tests.conftest import REPOSITORY

RECIPE = """\
model: {{ref: "cifar:resnet20"{weights}}}
data: {{name: digits{data}}}
stages:
  - {{stage: train, epochs: 2}}
  - {{stage: eval}}
  - {{stage: prune, method: l1, params: {{ratio: 0.5}}}}
  - {{stage: finetune}}
  - {{stage: eval}}
"""


def cells_of(folder: Path, axes: str, more: str = "", weights: str = "", data: str = "") -> list[Cell]:
    """The cells of a grid, or of what `more` searches."""
    (folder / "base.yaml").write_text(RECIPE.format(weights=weights, data=data))
    (folder / "s.yaml").write_text(f"recipe: base.yaml\naxes: {axes}\n{more}\n")
    sweep = load_sweep(folder / "s.yaml")
    make = CellMaker(sweep, settings_of(sweep))
    found = grid(sweep.axes, make) if sweep.search.kind == "grid" else drawn(sweep.axes, sweep.search, make)
    return list(found.proposed())


def names(cells: list[Cell]) -> list[str]:
    """What they are called."""
    return [cell.name for cell in cells]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ratio", ("stages", 2, "params", "ratio")),
        ("criterion", ("stages", 2, "method")),
        ("stages.2.method", ("stages", 2, "method")),
        ("seed", ("seed",)),
        ("model", ("model",)),
        ("model.kwargs.depth", ("model", "kwargs", "depth")),
        ("patience", None),
        ("statistic", None),
    ],
)
def test_what_an_axis_changes(tmp_path: Path, name: str, path: tuple[str, ...] | None) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE.format(weights="", data=""))
    (tmp_path / "s.yaml").write_text(f"recipe: base.yaml\naxes: {{{name}: [1]}}\n")
    sweep = load_sweep(tmp_path / "s.yaml")
    if path is None:
        with pytest.raises(PruneError, match=r"s.yaml:2:8: axis"):
            settings_of(sweep)
    else:
        assert settings_of(sweep)[0].path == path


def test_an_option_of_a_method_that_an_axis_names(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "{method: [activation], statistic: [std]}")
    assert cells_of(tmp_path, "{ratio: [0.5]}", "set: {method: activation, statistic: std}")[0].name == cell.name
    assert cell.plan.recipe.stages[2].params["statistic"] == "std"  # type: ignore[union-attr]


def test_a_network_takes_the_place_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b.th", "c.th"):
        Path(name).touch()
    axes = "{model: ['cifar:resnet32', a.safetensors, {ref: 'cifar:resnet20', weights: b.th}]}"
    sections = [cell.plan.recipe.model for cell in cells_of(tmp_path, axes, weights=", weights: c.th")]
    found = [(section.ref, section.weights) for section in sections]
    assert found == [("cifar:resnet32", None), (None, "a.safetensors"), ("cifar:resnet20", "b.th")]


def test_ranges() -> None:
    assert Range(0.1, 0.5, 5).points() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert Range(1, 4, 10).points() == [1, 2, 3, 4] and Range(1, 1000, 4, log=True).points() == [1, 10, 100, 1000]
    assert Range(0.001, 0.1, log=True).at(0.5) == 0.01 and Range(0.1, 0.7).at(1) == 0.7


def test_the_name_is_what_decides_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = ", weights: net.th"
    Path("net.th").write_bytes(b"one")
    axes = "{ratio: [0.3, 0.5]}"
    first = names(cells_of(tmp_path, axes, weights=weights))
    assert len(set(first)) == 2
    assert names(cells_of(tmp_path, axes, "set: {save_every: 3, description: x}", weights)) == first
    assert names(cells_of(tmp_path, axes, weights=weights, data=", workers: 2, root: elsewhere")) == first
    assert set(names(cells_of(tmp_path, axes, "set: {seed: 1}", weights))).isdisjoint(first)
    assert set(names(cells_of(tmp_path, axes, "set: {data.val_fraction: 0.2}", weights))).isdisjoint(first)
    assert names(cells_of(tmp_path, "{ratio: [0.5, 0.3, 0.7]}", weights=weights))[:2] == first[::-1]
    Path("moved.th").write_bytes(b"one")
    assert names(cells_of(tmp_path, axes, weights=", weights: moved.th")) == first
    Path("net.th").write_bytes(b"two")
    assert set(names(cells_of(tmp_path, axes, weights=weights))).isdisjoint(first)


def test_what_is_shared(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "{seed: [0, 1], ratio: [0.3, 0.5], stages.3.epochs: [1, 2]}")
    lengths = {tuple(len(shared.plan.recipe.stages) for shared in cell.shared) for cell in cells}
    assert lengths == {(2, 3)}
    assert len({cell.shared[0].name for cell in cells}) == 2  # a dense network for each seed
    assert len({cell.shared[1].name for cell in cells}) == 4  # pruned once for both trainings
    assert not cells_of(tmp_path, "{stages.0.epochs: [1, 2]}")[0].shared


def test_more_drawn_cells_are_the_first_and_others(tmp_path: Path) -> None:
    axes = "{ratio: {low: 0.1, high: 0.9}, method: [l1, l2]}"
    few = names(cells_of(tmp_path, axes, "search: {kind: random, cells: 3}"))
    many = names(cells_of(tmp_path, axes, "search: {kind: random, cells: 6}"))
    assert many[:3] == few and len(set(many)) == 6
    assert names(cells_of(tmp_path, axes, "search: {kind: random, cells: 3, seed: 1}")) != few
    with pytest.raises(PruneError, match="about 2 different combinations"):
        cells_of(tmp_path, "{method: [l1, l2]}", "search: {kind: random, cells: 3}")


def row(values: dict[str, Any], status: str = "finished", **figures: float) -> SweepRow:
    return SweepRow.model_validate({"cell": json.dumps(values), "values": values, "status": status, "figures": figures})


def test_seeds_are_judged_together() -> None:
    """The best single cell belongs to the method that is worse on average."""
    rows = [
        row({"method": "a", "seed": 0}, top1=99.0, macs=5),
        row({"method": "a", "seed": 1}, top1=50.0, macs=5),
        row({"method": "b", "seed": 0}, top1=80.0, macs=4),
        row({"method": "b", "seed": 1}, top1=82.0, macs=6),
        row({"method": "c", "seed": 0}, top1=99.0, macs=1),
        row({"method": "c", "seed": 1}, "failed"),
        row({"method": "d", "seed": 0}, top1=70.0, macs=4),
        row({"method": "d", "seed": 1}, top1=70.0, macs=4),
    ]
    groups = groups_of(rows, "seed")
    assert [(group.label, group.figures.get("top1"), group.complete) for group in groups] == [
        ("method=a", 74.5, True),
        ("method=b", 81.0, True),
        ("method=c", 99.0, False),
        ("method=d", 70.0, True),
    ]
    setting = Setting(Axis("seed", (0, 1), "s.yaml:1:1", ("", "")), ("seed",))
    outcome = outcome_of(Path("x"), rows, 0, [setting], Choice("max top1 where macs < 6"))
    assert outcome.best is not None and outcome.best.label == "method=b"
    assert outcome.fronts["macs"] == ("method=d", "method=b")
    assert any("method=c" in note for note in outcome.notes) and len(outcome.failed) == 1


def test_half_a_line_is_no_result(tmp_path: Path) -> None:
    text = row({"ratio": 0.3}, top1=1.0).model_dump_json()
    (tmp_path / "results.jsonl").write_text(f"{text}\n{text[:20]}")
    assert len(read_lines(tmp_path)) == 1
    (tmp_path / "results.jsonl").write_text(f"{text[:20]}\n{text}\n")
    assert len(read_lines(tmp_path)) == 1


def test_the_schema_is_the_one_that_is_shipped() -> None:
    written = json.loads((REPOSITORY / "recipes" / "sweep.schema.json").read_text())
    assert written == sweep_json_schema(), "run `prune recipe schema --sweep -o recipes/sweep.schema.json --force`"


def test_the_shipped_sweep_can_be_run() -> None:
    sweep = load_sweep(Path("digits"))
    assert grid(sweep.axes, CellMaker(sweep, settings_of(sweep))).total == 18


def compared_cells(rows: list[SweepRow]) -> MethodsCompared:
    """The methods of a sweep over methods, ratios and seeds."""
    axes = {"method": "stages.1.method", "ratio": "stages.1.params.ratio", "seed": "seed"}
    return compared_rows(Path("out"), SweepHead(axes=axes, stages=("prune", "eval"), cells={}), rows)


def test_methods_are_tested_over_seeds() -> None:
    """Ratios differ far more than methods, and seeds at which a cell is missing do not count."""
    scores = {"a": 3.0, "b": 1.0, "c": 2.9}
    noise = [0.0, 0.2, 0.1, 0.3]
    rows = [
        row({"method": name, "ratio": ratio, "seed": seed}, top1=50 * ratio + value + noise[seed] * (index + 1) / 10)
        for index, (name, value) in enumerate(scores.items())
        for ratio in (0.3, 0.7)
        for seed in range(4)
    ]
    compared = compared_cells(rows)
    assert compared.order == ["a", "c", "b"] and compared.settings == 2 and compared.seeds == (0, 1, 2, 3)
    difference, p = compared.tests["a", "b"]
    assert difference == pytest.approx(1.985) and p is not None and p < 0.001
    assert compared.verdict()[1].startswith("it is better than c, b")
    steady = [
        one.model_copy(update={"figures": {"top1": 20.0 + 30 * (one.values["method"] == "a")}})
        if one.values["method"] != "c"
        else one
        for one in rows
    ]
    untested = compared_cells(steady)
    assert untested.tests["a", "b"][1] is None and untested.tests["a", "c"][1] is not None
    assert "not tested against b: no spread over seeds" in " ".join(untested.verdict())
    fewer = compared_cells(rows[1:])
    assert fewer.seeds == (1, 2, 3) and fewer.left_out == (0,) and "seed 0" in fewer.verdict()[-1]
    with pytest.raises(PruneError, match="3 methods and 1 seed at"):
        compared_cells([one for one in rows if one.values["seed"] == 2])
