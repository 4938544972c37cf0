"""Recipes: what can be written, where each value comes from, and what every mistake says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.errors import PruneError, RecipeError
from prunecli.pipeline.run import check_plan
from prunecli.recipe.json_schema import recipe_json_schema
from prunecli.recipe.loader import load_yaml, parse_value, parse_yaml
from prunecli.recipe.resolve import Override, load_plan, parse_set, resolve
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_ours_can_be_run(path: Path) -> None:
    assert check_plan(load_plan(path))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("on", "on"), ("yes", "yes"), ("010", 10), ("0x10", 16), ("0o10", 8), ("true", True),
        ("~", None), ("", None), ("'1'", "1"), ("1.5", 1.5), ("-3", -3), (".inf", float("inf")), ("1_000", "1_000"),
        ("12:30", "12:30"), ("2020-01-01", "2020-01-01"), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_value(text, "x") == value


def test_precedence_and_origins(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "version: 1\nmodel: {ref: cifar:resnet20}\ndata:\n  name: digits\n  workers: 2\nseed: 3\n"
        "stages: [{stage: train, epochs: 9}, {stage: eval}]\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\ndata:\n  workers: 1\nstages:\n  - {stage: train, epochs: 4, lr: 1e-2}\n")
    overrides = [parse_set("seed=7"), parse_set("stages.0.lr=0.5"), Override(("seed",), 8, "--seed")]
    plan = load_plan(child, overrides)
    rows = {key: (value, origin) for key, value, origin in plan.rows()}
    assert rows["data.name"] == ("digits", f"{tmp_path}/base.yaml:4:9")  # mappings merge
    assert rows["data.workers"] == (1, f"{child}:3:12")
    assert len(plan.recipe.stages) == 1  # lists replace
    assert rows["stages.0.epochs"] == (4, f"{child}:5:28")
    assert rows["stages.0.lr"] == (0.5, "--set stages.0.lr")
    assert rows["seed"] == (8, "--seed")
    assert rows["device"] == ("auto", "default")


def test_a_plan_is_a_recipe_again() -> None:
    plan = load_plan(REPOSITORY / "recipes" / "quickstart.yaml")
    again = resolve(parse_yaml(json.dumps(plan.to_dict()), "again"))
    assert again.recipe == plan.recipe and hash(str(again.recipe)) == hash(str(plan.recipe))


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "data: {name: digits, root: '${env:PRUNE_TEST_ROOT:-/else}/x'}"
    assert resolve(parse_yaml(text, "r")).recipe.data.root == "/else/x"
    monkeypatch.setenv("PRUNE_TEST_ROOT", "/here")
    assert resolve(parse_yaml(text, "r")).recipe.data.root == "/here/x"
    with pytest.raises(RecipeError, match=r"r:1:7: environment variable PRUNE_UNSET is not set"):
        parse_yaml("seed: ${env:PRUNE_UNSET}", "r")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [{stage: trian}]", r"r:1:18: unknown stage 'trian': did you mean 'train'"),
        ("stages:\n  - {stage: train, epoch: 3}", r"r:2:20: unknown key 'epoch'; did you mean 'epochs'"),
        ("stages: [{epochs: 3}]", r"r:1:10: every stage needs `stage:`"),
        ("stages: {a: 1}", r"r:1:9: stages has to be a list"),
        ("stages: [{stage: prune, params: {ratio: 1}}]", r"r:1:41: stages.0.params.ratio has to be less than 1"),
        ("stages: [{stage: prune, params: {ratio: .nan}}]", r"r:1:41: .*ratio has to be"),
        ("stages: [{stage: prune, params: {ratoi: 0.2}}]", r"r:1:34: unknown key 'ratoi'; did you mean 'ratio'"),
        ("stages: [{stage: prune, method: l3}]", r"r:1:33: unknown method 'l3'"),
        ("data: {nam: x}", r"r:1:8: unknown key 'nam'; did you mean 'name'"),
        ("modle: {}", r"r:1:1: unknown key 'modle'; did you mean 'model'"),
        ("version: 2", r"r:1:10: version has to be 1"),
        ("seed: abc", r"r:1:7: seed has to be a whole number \(got 'abc'\)"),
        ("a: 1\na: 2", r"r:2:1: 'a' appears twice"),
        ("a: &x 1", r"r:1:4: anchors and aliases"),
        ("a: !!python/object:os.system 1", r"r:1:4: the tag"),
        ("- 1", r"r:1:1: a recipe is a mapping"),
        ("a: [1", r"r:1:6: not valid YAML"),
        ("a: " + "[" * 40 + "]" * 40, r"r:1:\d+: nested more than 32 deep"),
        ("? [a]\n: 1", r"r:1:3: a key has to be plain text"),
    ],
)
def test_every_mistake_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PruneError, match=message) as caught:
        resolve(parse_yaml(text, "r"))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "KEY=VALUE"),
        ("seed.x=1", "seed holds a single value"),
        ("stages.5.lr=1", r"stages has entries 0 to 0, not 5"),
        ("stages.0.lr=-1", r"--set stages.0.lr has to be greater than 0|--set stages.0.lr: .*greater than 0"),
    ],
)
def test_a_wrong_set_is_named(text: str, message: str) -> None:
    document = parse_yaml("seed: 1\nstages: [{stage: train}]", "r")
    with pytest.raises(RecipeError, match=message):
        resolve(document, [parse_set(text)])


def test_extends_cannot_loop_and_names_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_plan(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: none.yaml\n")
    with pytest.raises(RecipeError, match=r"none.yaml: no such recipe"):
        load_plan(tmp_path / "c.yaml")
    with pytest.raises(RecipeError, match="is a directory"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[]", "no stages"),
        ("[{stage: compare}]", "two eval stages"),
        ("[{stage: eval, report: ../x.json}]", "plain file name"),
        ("[{stage: eval}, {stage: eval}, {stage: compare, fail_if: 'x > 1'}]", "unknown figure 'x'"),
    ],
)
def test_a_run_is_checked_before_it_starts(stages: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_plan(resolve(parse_yaml(f"stages: {stages}", "r")))


def test_the_schema_in_the_repository_is_current() -> None:
    written = json.loads((REPOSITORY / "recipes" / "prune.schema.json").read_text())
    assert written == recipe_json_schema(), "run `prune recipe schema -o recipes/prune.schema.json --force`"
    assert written["$defs"]["TrainStage"]["properties"]["epochs"]["description"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_no_text_escapes_as_another_error(text: str) -> None:
    try:
        resolve(parse_yaml(text, "r"))
    except PruneError as error:
        assert "\n" not in str(error)
