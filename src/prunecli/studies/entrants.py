"""Methods that take part in a comparison: names with options of their own, checked like those of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunecli.errors import MethodError, RecipeError
from prunecli.methods.params import TARGETS, StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.methods.spec import MethodSpec
from prunecli.recipe.loader import Document, parse_value
from prunecli.recipe.resolve import Override, Plan, resolve
from prunecli.recipe.schema import PruneStage
from prunecli.registry import imported

REFERENCES = ("l2", "random")
"""What every comparison includes: the simplest criterion, and none at all."""
_FEWEST_MEMBERS = 2
_AMOUNTS = ("ratio", "layer_ratio", "schedule", "steps", "initial_ratio", "retention", "epsilon", *TARGETS)
"""Parameters that say how much to remove, which a comparison decides for all methods at once."""


@dataclass(frozen=True)
class Entrant:
    """One method as it takes part.

    Attributes:
        label: As the user wrote it, for instance "activation:statistic=std".
        method: Its specification.
        params: Its parameters.
    """

    label: str
    method: MethodSpec
    params: StructuralParams

    def members(self) -> dict[str, Entrant]:
        """What it makes one ranking of, if it is a fusion of several; each of them alone, by name."""
        if not self.method.members:
            return {}
        alone: Mapping[str, StructuralParams] = imported(self.method.members)(self.params)
        if len(alone) < _FEWEST_MEMBERS:
            return {}
        return {name: Entrant(f"{name} of {self.label}", self.method, params) for name, params in alone.items()}


def entrants(methods: str, shared: Mapping[str, Any]) -> tuple[Entrant, ...]:
    """The methods of a list such as "fisher,activation:statistic=std", with l2 and random behind them if they are not.

    Args:
        methods: Names with commas; options follow a name after colons.
        shared: Parameters that all of them get, where their own options say nothing else.

    Raises:
        MethodError: A method does not exist, or does not rank channels.
        RecipeError: An option does not exist, has a wrong value or says how much to remove, or a method is named twice.
    """
    words = [word.strip() for word in methods.split(",")]
    if not all(words):
        empty = f"--methods {methods}:" if any(words) else "--methods names no method:"
        raise RecipeError(f"{empty} write names with commas, for instance fisher,taylor,l2")
    names = [word.partition(":")[0] for word in words]
    words += [name for name in REFERENCES if name not in names]
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice is not None:
        raise RecipeError(f"--methods: {twice} is named twice; give it once, or with other options ({twice}:KEY=VALUE)")
    return tuple(_entrant(word, shared) for word in words)


def shared_params(stage: PruneStage) -> dict[str, Any]:
    """What a prune stage sets besides how much to remove, for all methods; see `as_written`."""
    names = {field.name for field in dataclasses.fields(StructuralParams)}
    return {name: value for name, value in stage.params.items() if name in names and name not in _AMOUNTS}


def as_written(plan: Plan) -> PruneStage:
    """The first stage of a plan without the parameters that nobody wrote.

    Methods have defaults of their own, which only what the user says overrides, also where it is the default of the
    stage's method: `--normalise mean` reaches a method that would not divide.
    """
    stage = plan.recipe.stages[0]
    assert isinstance(stage, PruneStage)
    defaults = dataclasses.asdict(get_structural(stage.method).params_class())
    written = plan.written("stages", 0, "params")
    kept = {name: value for name, value in stage.params.items() if name in written or value != defaults[name]}
    return dataclasses.replace(stage, params=kept)


def _entrant(word: str, shared: Mapping[str, Any]) -> Entrant:
    name, *texts = word.split(":")
    flag = f"--methods {word}"
    own = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"{flag}: write options as METHOD:KEY=VALUE, for instance activation:statistic=std")
        own[key.replace("-", "_")] = parse_value(value, f"{flag}: {key}")
    amount = next((key for key in own if key in _AMOUNTS), None)
    if amount is not None:
        raise RecipeError(f"{flag}: all methods remove equally much; leave {amount} out, or give --{amount} to all")
    try:
        spec = get_structural(name)
    except MethodError as error:
        raise MethodError(f"--methods: {error}") from error
    if spec.ratios:
        raise MethodError(
            f"--methods: {name} decides itself how much each layer loses, so it removes more or less than the others; "
            "give the criterion that it ranks by"
        )
    overrides = [
        Override(("stages", 0, "method"), name, flag),
        Override(("stages", 0, "params"), {**shared, **own}, f"{flag}:"),
    ]
    (stage,) = resolve(Document({"stages": [{"stage": "prune"}]}, "--methods"), overrides).recipe.stages
    assert isinstance(stage, PruneStage)
    return Entrant(word, spec, spec.params_class(**stage.params))
