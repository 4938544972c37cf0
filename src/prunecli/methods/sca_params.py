"""Parameters of `prune sca`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Le
from prunecli.methods.params import TRAINING_ALIASES, TrainedParams


@dataclass(frozen=True)
class ScaParams(TrainedParams):
    """How channels are pruned and regrown by their activity while the network trains."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - read by pydantic, never changed

    keep_share: Annotated[float, Ge(0), Le(1), Doc("Share of all channels that stays by activity at a pruning.")] = 0.8
    regrow_share: Annotated[
        float, Ge(0), Le(1), Doc("Share of the others that comes back, by the gradients of their gates.")
    ] = 0.1
    prune_epochs: Annotated[
        int | None, Ge(1), Doc("Epochs in which channels are pruned; the others train what is left; default: all.")
    ] = None
    prune_every: Annotated[int, Ge(1), Doc("Epochs from one pruning to the next.")] = 1
    connectivity: Annotated[
        float | None, Gt(0), Le(1), Doc("Share of channels left by the last pruning; those before approach it evenly.")
    ] = None
    pruning_nodes: Annotated[
        tuple[str, ...],
        Doc("Spiking neurons (else layers) that take part: 0,3,5 or 0-4 or 0:5 or a name pattern; default: all."),
    ] = ()
    l1: Annotated[float, Ge(0), Doc("L1 penalty on the scales in front of the gates, or weights without scales.")] = 0.0
    min_width: Annotated[int, Ge(1), Doc("The fewest channels that a layer keeps.")] = 4
    prune_stem: Annotated[bool, Doc("Whether the first layer may shrink too.")] = False


ALIASES: dict[str, tuple[str, str | None]] = TRAINING_ALIASES | {"--pruning_nodes": ("--pruning-nodes", "list")}
"""Options of an older tool: what they are called here, and whether a value or a list of values follows."""
