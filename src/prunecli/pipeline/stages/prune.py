"""The stage prune: the method's family says what runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from prunecli.errors import RecipeError
from prunecli.methods.registry import family_of, get_method
from prunecli.methods.spec import FAMILIES
from prunecli.phases import shown_by
from prunecli.pipeline.before_and_after import is_to_be_evaluated, score_change
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.fields import fields_of
from prunecli.recipe.schema import PruneStage
from prunecli.registry import imported
from prunecli.report.results import StageOutcome


def prune_stage(space: Workspace, stage: PruneStage, out: Path) -> StageOutcome:
    """Prunes the current network and saves it with its manifest.

    Raises:
        MethodError: The method cannot do what was asked.
        RecipeError: A setting is given that methods of this family do not read.
        VerificationError: The result is not what it has to be; nothing is saved.
    """
    family, default = family_of(stage.method), PruneStage()
    for name in _SETTINGS:
        if name not in family.settings and getattr(stage, name) != getattr(default, name):
            reader = next(other.summary for other in FAMILIES.values() if name in other.settings)
            spec = get_method(stage.method)
            own = spec.renamed.get(name, name)
            known = own in (field.name for field in fields_of(spec.params_class))
            hint = f"; --{own.replace('_', '-')} of `prune {stage.method}` is params.{own} in a recipe" if known else ""
            raise RecipeError(f"--{name.replace('_', '-')} is for methods that {reader}{hint}")
    with space.sink.phase("load libraries"):
        runner = imported(family.runner)
    with shown_by(space.sink.phase):
        if stage.evaluate:
            is_to_be_evaluated(space, stage)  # what is asked for and cannot be had is said before any work
        outcome: Any = runner(space, stage, out)
        # The network is saved by now, whatever happens.
        if "evaluate" in family.settings and is_to_be_evaluated(space, stage):
            outcome = dataclasses.replace(outcome, score=score_change(space, stage))
    result: StageOutcome = outcome
    return result


_SETTINGS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.settings))
