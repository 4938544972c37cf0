"""What a prune stage cannot be asked for at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunecli.errors import RecipeError
from prunecli.methods.params import TARGETS
from prunecli.recipe.loader import KeyPath, placed


def refuse_two_amounts(origins: Mapping[KeyPath, str], params: KeyPath) -> None:
    """Refuses two ways of saying how much to remove on one command line; a flag takes the place of a recipe's.

    Args:
        origins: Where values were written.
        params: Where a stage's parameters are.

    Raises:
        RecipeError: Two are typed.
    """
    written = [origins.get((*params, name), "") for name in ("ratio", "layer_ratio", *TARGETS)]
    typed = [origin for origin in written if origin.startswith("--")]
    if len(typed) > 1 and typed[0] == written[0]:
        raise RecipeError(f"{typed[0]} and {typed[1]} say how much to remove, each in its own way; give one of them")


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
