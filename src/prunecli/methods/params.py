"""Parameters of each method family, from which options and recipe validation are made. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class StructuralParams:
    """What every method that removes whole channels understands."""

    ratio: Annotated[float, Gt(0), Lt(1), Doc("Share of the prunable channels to remove, between 0 and 1.")] = 0.5
    scope: Annotated[
        Literal["global", "local"],
        Doc("global: one ranking over all layers, each scaled by its mean; local: the same ratio in every layer."),
    ] = "global"
    round_to: Annotated[
        int, Ge(0), Doc("Widths become multiples of this; 0: 8, and less in layers under 64 channels.")
    ] = 0
    max_ratio: Annotated[float, Gt(0), Le(1), Doc("The most that one layer may lose.")] = 0.9
    min_width: Annotated[int, Ge(1), Doc("The fewest channels that a layer keeps.")] = 4
    prune_stem: Annotated[bool, Doc("Whether the first layer may shrink too.")] = False
    heads: Annotated[bool, Doc("Shrink attention by whole heads, instead of by the same dimensions of every head.")] = (
        False
    )
