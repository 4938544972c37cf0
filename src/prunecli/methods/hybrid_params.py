"""Parameters of selecting units of hybrid networks. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Le, Lt
from prunecli.methods.params import StructuralParams


@dataclass(frozen=True)
class HybridParams(StructuralParams):
    """How many units every layer keeps, and of which kinds."""

    keep_fraction: Annotated[float, Gt(0), Lt(1), Doc("Share of every layer's units that stays.")] = 0.5
    snn_fraction: Annotated[float, Gt(0), Lt(1), Doc("Share of spiking units among those that stay.")] = 0.5
    criterion: Annotated[str, Doc("What units of one kind are ranked by: fisher, hap, l2, random ...")] = "fisher"
    round_to: Annotated[int, Ge(0), Doc("Widths become multiples of this; 1: as many as asked.")] = 1
    min_width: Annotated[int, Ge(1), Doc("The fewest units of a kind that a layer keeps.")] = 1
    max_ratio: Annotated[float, Gt(0), Le(1), Doc("The most that one kind in a layer may lose.")] = 1.0
