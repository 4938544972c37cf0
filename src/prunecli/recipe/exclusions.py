"""What a prune stage cannot be asked for at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunecli.errors import RecipeError
from prunecli.methods.params import TARGETS, StructuralParams
from prunecli.recipe.loader import KeyPath, placed

_AMOUNTS = ("ratio", "layer_ratio", *TARGETS)
"""Parameters that say how much to remove."""


def one_amount(params: Mapping[str, Any], origins: Mapping[KeyPath, str], path: KeyPath) -> dict[str, Any]:
    """Parameters that say in one way how much to remove: what is typed takes the place of what a recipe says.

    Args:
        params: A stage's parameters as they were written.
        origins: Where values were written.
        path: Where the parameters are.

    Raises:
        RecipeError: Two ways are typed, or a recipe has two.
    """
    given = [name for name in _AMOUNTS if params.get(name)]
    where = {name: origins.get((*path, name), "") for name in given}
    typed = [name for name in given if where[name].startswith("--")]
    if len(typed) > 1:
        named = " and ".join(where[name] for name in typed[:2])
        raise RecipeError(f"{named} say how much to remove, each in its own way; give one of them")
    if typed:
        return {name: value for name, value in params.items() if name not in given or name in typed}
    # The plan of a run has defaults too, so a ratio that is the default may be nobody's wish.
    wished = [name for name in given if name != "ratio" or params[name] != StructuralParams.ratio]
    if len(wished) > 1:
        named = " and ".join(wished[:2])
        message = f"{named} say how much to remove, each in its own way; give one of them"
        raise RecipeError(placed(message, where[wished[1]] or None))
    return dict(params)


def refuse_in_memory(stage: Mapping[str, Any], where: str | None = None) -> None:
    """Refuses `offload: disk` together with what needs all weights in memory.

    Args:
        stage: A prune stage, as it is written or resolved: bounds of its values need not be checked yet.
        where: Where `offload` was written, if it was.

    Raises:
        RecipeError: It asks for both.
    """
    if stage.get("offload") != "disk":
        return
    params = stage.get("params")
    where = None if where is not None and where.startswith("--") else where
    if stage.get("epochs"):
        reason = (
            "--offload disk and --epochs exclude each other: training keeps weights, gradients and the optimizer's "
            "moments in memory; prune first, and run prune finetune where the smaller network fits"
        )
        raise RecipeError(placed(reason, where))
    if isinstance(params, Mapping) and params.get("latency") is not None:
        reason = (
            "--offload disk and --latency exclude each other: a network that is read from the disk while it runs is "
            "not as fast as it will be; give --macs or --params"
        )
        raise RecipeError(placed(reason, where))
