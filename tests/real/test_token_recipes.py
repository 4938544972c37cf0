"""The recipe that leaves tokens out."""

from __future__ import annotations

from tests.conftest import REPOSITORY, Prune


def test_the_recipe_is_a_plan(prune: Prune) -> None:
    done = prune("run", REPOSITORY / "recipes" / "clip-tiny-cifar10.yaml", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert "token" in done.out
