"""The recipes that leave tokens out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from prunecli.cli.output import Output
from prunecli.methods.params import TokenParams
from prunecli.methods.token import at_random, plan_selection
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe
from prunecli.tokens import runtime, selectors
from prunecli.tokens.selectors import AttentionInputs, Choice
from prunecli.tokens.towers import find_tower, token_count
from tests.conftest import REPOSITORY, Prune
from tests.methods.test_tokens import Chosen, inverted, top1


@pytest.mark.parametrize("name", ["clip-tiny-cifar10", "vit-tiny-mnist"])
def test_the_recipes_are_plans(prune: Prune, name: str) -> None:
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert "token" in done.out


def reused() -> Callable[[Choice, AttentionInputs], Chosen]:
    """What the first image needs stays in all."""
    first: list[Tensor] = []

    def choose(choice: Choice, seen: AttentionInputs) -> Chosen:
        if not first:
            first.append(selectors.choose(choice, seen)[0][:1])
        return first[0].expand(seen.x.shape[0], -1), None

    return choose


@pytest.mark.slow
def test_on_cluttered_digits_it_matters_which_tokens_stay(
    prune: Prune, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe stops by itself if the trained network is poor; random, reused and inverted choices lose more."""
    done = prune("run", REPOSITORY / "recipes" / "vit-tiny-mnist.yaml", "--output", "run")
    assert done.code == 0, done.err
    (candidate,) = json.loads((tmp_path / "run" / "comparison.json").read_text())["candidates"]
    assert candidate["top1_drop"] < 4 and candidate["macs_ratio"] < 0.85
    recipe = Recipe(
        model=ModelSection(weights=str(tmp_path / "run" / "trained.safetensors")),
        data=DataSection(name="cluttered-mnist"),
    )
    space = Workspace(recipe, Output("quiet"))
    model = space.model().model.eval()
    tower = find_tower(model)
    params = TokenParams(keep_share=0.25, block=2, selector="cls")
    chosen = plan_selection(params, tower, token_count(model, tower, space.inputs.example()))
    random = {f"random {seed}": at_random(chosen, tower, seed) for seed in range(3)}
    found = top1(space, {"unpruned": None, "cls": chosen, **random})
    for name, choose in (("inverted", inverted), ("reused", reused())):
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "choose", choose)
            found[name] = top1(space, {"unpruned": None, "cls": chosen})["cls"]
    assert found["unpruned"] >= 85
    assert all(found["cls"] > found[name] + 5 for name in (*random, "inverted", "reused")), found
