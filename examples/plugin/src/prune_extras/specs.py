"""What the package adds, described without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc
from annotated_types import Ge, Gt, Lt

from prunecli.criteria.index import CriterionSpec
from prunecli.methods.spec import MethodSpec

SPREAD = CriterionSpec(
    "spread",
    "prune_extras.spread:spread",
    "Remove the channels whose weights vary least.",
)


@dataclass(frozen=True)
class SlimmingParams:
    """How to slim a network."""

    penalty: Annotated[float, Ge(0), Doc("Weight of the L1 norm of batch normalisation scales in the loss.")] = 1e-3
    remove: Annotated[float, Gt(0), Lt(1), Doc("Share of each layer's channels to remove after training.")] = 0.5


SLIMMING = MethodSpec(
    "slimming",
    "Train with a penalty on batch normalisation scales, then remove small ones.",
    "https://arxiv.org/abs/1708.06519",
    "trained",
    SlimmingParams,
    "prune_extras.slimming:Slimming",
)


@dataclass(frozen=True)
class EarlyExitParams:
    """Where to stop."""

    skip: Annotated[int, Ge(1), Doc("Blocks to skip at the end.")] = 1


EARLY_EXIT = MethodSpec(
    "early-exit",
    "Skip the last blocks of a vision transformer.",
    "",
    "runtime",
    EarlyExitParams,
    "prune_extras.early_exit:EarlyExit",
)
