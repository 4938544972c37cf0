"""Recipes that leave tokens out, and that on a trained network it matters which ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from prunecli.cli.output import Output
from prunecli.methods.params import TokenParams
from prunecli.methods.token import at_random, plan_selection
from prunecli.pipeline.tokens import compare_ways
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import ModelSection, Recipe
from prunecli.tokens import runtime, selectors
from prunecli.tokens.selectors import Choice, Seen
from prunecli.tokens.towers import find_tower, token_count
from tests.conftest import REPOSITORY, Prune

KEEP, BLOCK = 0.25, 2
Chosen = tuple[Tensor, Tensor | None]


@pytest.mark.parametrize("name", ["clip-tiny-cifar10", "vit-tiny-mnist"])
def test_the_recipes_are_plans(prune: Prune, name: str) -> None:
    done = prune("run", REPOSITORY / "recipes" / f"{name}.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert "token" in done.out


def inverted(choice: Choice, seen: Seen) -> Chosen:
    """The tokens that matter least stay."""
    importance = selectors.coarse_importance(seen, seen.keys())[:, seen.prefix :]
    return (-importance).topk(choice.kept, dim=1).indices.sort(dim=1).values, None


def reused() -> Callable[[Choice, Seen], Chosen]:
    """What the first image needs stays in all."""
    first: list[Tensor] = []

    def choose(choice: Choice, seen: Seen) -> Chosen:
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
    recipe = Recipe(model=ModelSection(weights=str(tmp_path / "run" / "trained.safetensors")))
    space = Workspace(recipe, Output("quiet"))
    space.use_data("cluttered-mnist")
    model, example = space.model().model.eval(), space.example()
    tower = find_tower(model)
    params = TokenParams(keep=KEEP, block=BLOCK, selector="cls")
    chosen = plan_selection(params, tower, token_count(model, tower, example))
    ways = {"unpruned": None, "cls": chosen} | {f"random {seed}": at_random(chosen, tower, seed) for seed in range(3)}
    top1 = _top1(space, ways)
    for name, choose in (("inverted", inverted), ("reused", reused())):
        with monkeypatch.context() as patched:
            patched.setattr(runtime, "choose", choose)
            top1[name] = _top1(space, {"unpruned": None, "cls": chosen})["cls"]
    assert top1.pop("unpruned") >= 85
    best = top1.pop("cls")
    assert all(best > other + 5 for other in top1.values()), (best, top1)


def _top1(space: Workspace, ways: dict[str, runtime.TokenSelection | None]) -> dict[str, float]:
    macs = dict.fromkeys(ways)
    found = compare_ways(space, ways, macs)  # type: ignore[arg-type]
    return {one.name: one.metrics.top1 for one in found if one.metrics is not None and one.metrics.top1 is not None}
