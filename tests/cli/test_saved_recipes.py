"""`--save-recipe`: the file is the plan that was typed, whatever reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prunecli.errors import RecipeError
from prunecli.recipe.loader import Document, load_yaml, parse_value, parse_yaml
from prunecli.recipe.origins import COMMAND_LINE
from prunecli.recipe.resolve import Override, parse_set, resolve
from prunecli.recipe.writing import recipe_text, written_recipe
from tests.conftest import REPOSITORY, Prune


def _plan(prune: Prune, *words: object, **environment: str) -> dict[str, Any]:
    done = prune(*words, "--dry-run", "--json", env=environment)
    assert done.err == "" or done.err.startswith("wrote "), done.err
    return {row["key"]: row["value"] for row in done.json if row["key"] != "MODEL"}


@pytest.mark.parametrize(
    "words",
    [
        ["l1", "a.pt", "--ratio", "0.5"],  # typed, though it is the default
        [
            *("l1", "a.pt", "--layer-ratio", "layer1.*=0.3", "--layer-ratio", "012=0.25", "--keep", "*.fc", "--keep"),
            *("on", "--model-kwargs", "T=4", "--model-kwargs", "neuron='1e-3'", "--model-kwargs", "a={b: [1, 'no']}"),
            *("--image-size", "32", "--void", "0,255", "--data", "folder:im ages", "--data-root", "~/x"),
        ],
        ["prune", "a.pt", "--method", "magnitude", "--set", "stages.0.params.sparsity=9e-1"],
        ["train", "cifar:resnet20", "--lr", "1e-3", "--epochs", "2", "--schedule", "step", "--seed", "7"],
        ["finetune", "a.pt", "--teacher", "none", "--data", "digits", "--set", "data.workers=2"],
        ["finetune", "a.pt", "--set", "stages.0.teacher=null", "--set", "model.kwargs.x=null"],
        ["eval", "a.pt", "--measure", "accuracy", "--measure", "macs", "--require", "top1 >= 90: 'yes' # no"],
        ["token", "timm:vit_tiny_patch16_224", "--keep-share", "0.3", "--selector", "anchor"],
        ["run", "quickstart", "--set", "stages.0.epochs=1", "--seed", "3"],
    ],
    ids=lambda words: " ".join(words[:2] + words[2:3]),
)
def test_the_file_is_the_plan(prune: Prune, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "a.pt").touch()
    typed = _plan(prune, *words, "--save-recipe", "sub folder/r.yaml")
    assert _plan(prune, "run", "sub folder/r.yaml") == typed
    if words[0] != "run":
        assert _plan(prune, words[0], "sub folder/r.yaml") == typed
    text = (tmp_path / "sub folder" / "r.yaml").read_text()
    assert text.startswith(f"# Written by prune {words[0]} ") and "--save-recipe" not in text
    assert "# Run it with prune run 'sub folder/r.yaml'\n" in text


def test_a_stage_of_a_recipe_with_flags_on_top(prune: Prune, tmp_path: Path) -> None:
    typed = _plan(prune, "train", REPOSITORY / "recipes" / "quickstart.yaml", "--lr", "0.1", "--save-recipe", "r.yaml")
    assert _plan(prune, "train", "r.yaml") == typed and typed["stages.0.epochs"] == 12
    assert len(yaml.safe_load((tmp_path / "r.yaml").read_text())["stages"]) == 1


def test_variables_stay_variables(prune: Prune, tmp_path: Path) -> None:
    """So the file works elsewhere, and what is secret does not get into it."""
    for name in ("a.pt", "other.pt"):
        (tmp_path / name).touch()
    (tmp_path / "own.yaml").write_text(
        "model: {weights: '${env:NET}', kwargs: {a: ['${env:NET}']}}\n"
        "data: {name: 'text:${env:PLACE:-here}'}\nstages: [{stage: eval}]\n"
    )
    words = ["eval", "own.yaml", "--set", "data.root=/${env:NET}", "--set", "model.kwargs.b=${env:NET}"]
    typed = _plan(prune, *words, "--save-recipe", "r.yaml", NET="a.pt")
    assert typed["model.weights"] == "a.pt" and typed["model.kwargs.b"] == "a.pt" and typed["data.root"] == "/a.pt"
    assert _plan(prune, "eval", "r.yaml", NET="a.pt") == typed
    assert _plan(prune, "eval", "r.yaml", NET="other.pt")["model.weights"] == "other.pt"
    text = (tmp_path / "r.yaml").read_text()
    assert "a.pt" not in text and text.count("${env:NET}") == 6  # two of them in the comment
    assert "text:${env:PLACE:-here}" in text


def test_what_lies_elsewhere_or_is_code_has_to_be_trusted_again(prune: Prune, tmp_path: Path) -> None:
    """The file says how; without that, it is refused like any other that names such things."""
    (tmp_path / "in").mkdir()
    (tmp_path / "weights.pt").touch()
    weights = tmp_path / "weights.pt"
    typed = prune("eval", weights, "--save-recipe", "r.yaml", "--dry-run", "-q", cwd=tmp_path / "in")
    assert typed.code == 0, typed.err
    head = (tmp_path / "in" / "r.yaml").read_text().splitlines()[1]
    assert head == f"# Run it with prune run r.yaml --set model.weights={weights}"
    refused = prune("run", "r.yaml", "--dry-run", cwd=tmp_path / "in")
    assert refused.code == 2 and "leads out of the recipe's folder" in refused.err
    assert prune(*head.split()[5:], "--dry-run", cwd=tmp_path / "in").code == 0
    prune("eval", "module:net:make", "--save-recipe", "c.yaml", "--dry-run")
    assert "run c.yaml --allow-code net\n" in (tmp_path / "c.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model-kwargs", "password=geheim"], "model.kwargs.password looks like a secret"),
        (["--data", "wds:https://me:geheim@host/x"], "data.name looks like a secret"),
        (["--data-root", "${env:HOME}"], "data.root is '${env:HOME}' and would be read as"),
    ],
)
def test_what_cannot_be_written(prune: Prune, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "a.pt").touch()
    done = prune("eval", "a.pt", *words, "--save-recipe", "r.yaml", "--dry-run")
    assert done.code == 2 and message in done.err and "geheim" not in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "r.yaml").exists()


def test_an_existing_file_stays_unless_it_says_the_same(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    words = ["eval", "a.pt", "--dry-run", "--save-recipe"]
    assert prune(*words, "r.txt").err.startswith("error: --save-recipe r.txt: recipes are YAML; name it r.yaml")
    assert prune(*words, "r.yaml").code == 0 and prune(*words, "r.yaml").code == 0
    done = prune(*words, "r.yaml", "--seed", "1")
    assert done.code == 2 and "r.yaml: exists; add --force" in done.err
    assert "seed" not in load_yaml(tmp_path / "r.yaml").data
    assert prune(*words, "r.yaml", "--seed", "1", "--force").code == 0
    assert load_yaml(tmp_path / "r.yaml").data["seed"] == 1


def test_a_command_that_works_leaves_it_too(prune: Prune, tmp_path: Path) -> None:
    done = prune("l1", "cifar:resnet20", "--ratio", "0.3", "-o", "p.safetensors", "--save-recipe", "r.yaml")
    assert done.code == 0 and "wrote r.yaml" in done.err, done.err
    again = prune("l1", "r.yaml", "-o", "again.safetensors")
    assert again.code == 0, again.err
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("p", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "text",
    ["1e-3", "on", "012", "0o17", "0x1f", "null", "~", "", "1_000", ".5", ".inf", "true", "a: b", "- a", "#", "*", "&a",
     "'", '"', "\n", "a\nb", " a ", "\t", "ä", "{a}", "[a]", "!x", "2020-01-01", "=", "<<", "%", "@", "\u2028", "\\"],
)  # fmt: skip
def test_any_text_is_read_as_it_is(text: str) -> None:
    data = {"a": text, "b": [text], "c": {text or "x": text}}
    assert parse_yaml(recipe_text(data), "x").data == data


def test_the_check_would_find_another_plan(tmp_path: Path) -> None:
    plan = resolve(
        Document({"stages": [{"stage": "eval"}]}, COMMAND_LINE), [Override(("device",), "${env:X:-cpu}", "--device")]
    )
    with pytest.raises(RecipeError, match="device is"):
        written_recipe(plan, tmp_path / "r.yaml", "prune eval")
    assert parse_set("a=${env:X:-cpu}").value == "cpu" == parse_value("${env:X:-cpu}", "x")
