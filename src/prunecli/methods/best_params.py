"""Parameters of `best`. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from prunecli.criteria.options import ObsOptions
from prunecli.methods.params import ScopeOption, StructuralParams


@dataclass(frozen=True)
class BestParams(ObsOptions, StructuralParams):
    """What was measured to give the best networks after repair; see docs/repair.md."""

    scope: ScopeOption = "measured"
