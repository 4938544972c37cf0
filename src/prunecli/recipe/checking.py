"""Checking the values of a recipe, each mistake with where it was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prunecli.bounds import percentage_meant
from prunecli.errors import MethodError, PruneError, RecipeError, nearest, unknown
from prunecli.methods.registry import get_method
from prunecli.recipe.exclusions import one_amount, refuse_in_memory
from prunecli.recipe.fields import fields_of, listed, refusal
from prunecli.recipe.loader import KeyPath
from prunecli.recipe.refusals import Refusals
from prunecli.recipe.schema import STAGES, DataSection, ModelSection, Recipe, Stage


class Checker:
    """Validates raw data piece by piece, so that a mistake has one cause and one position.

    Args:
        origins: Where values were written; those that others take the place of are removed.
        refusals: Where mistakes go.

    Attributes:
        places: The index of each stage that was not refused, if others were.
    """

    def __init__(self, origins: dict[KeyPath, str], refusals: Refusals) -> None:
        self._origins, self._refusals = origins, refusals
        self.places: tuple[int, ...] | None = None

    def recipe(self, data: dict[str, Any]) -> Recipe | None:
        """The recipe, without what was refused in it; None if nothing is left.

        Args:
            data: Values as they were written.
        """
        stages = data.get("stages", [])
        if not isinstance(stages, list):
            self._refusals.add(RecipeError(f"{self.where(('stages',))}: stages has to be a list"))
            stages = []
        top = {key: value for key, value in data.items() if key != "stages"}
        recipe: Recipe | None = self._validated(Recipe, top, ())
        checked = [self._stage(raw, ("stages", index)) for index, raw in enumerate(stages)]
        kept = {index: stage for index, stage in enumerate(checked) if stage is not None}
        self.places = tuple(kept) if len(kept) < len(checked) else None
        return dataclasses.replace(recipe, stages=tuple(kept.values())) if recipe is not None else None

    def _stage(self, raw: Any, path: KeyPath) -> Stage | None:
        if not isinstance(raw, dict) or "stage" not in raw:
            text = f"{self.where(path)}: every stage needs `stage:`, one of {', '.join(STAGES)}"
            self._refusals.add(RecipeError(text))
            return None
        kind = raw["stage"]
        if kind not in STAGES:
            self._refusals.add(RecipeError(f"{self.where((*path, 'stage'))}: {unknown('stage', str(kind), STAGES)}"))
            return None
        if kind == "prune":
            try:
                refuse_in_memory(raw, self._origins.get((*path, "offload")))
            except RecipeError as error:
                self._refusals.add(error, error.__cause__)
        stage: Any = self._validated(STAGES[kind], raw, path)
        return self._with_params(stage, path) if kind == "prune" and stage is not None else stage

    def _with_params(self, stage: Any, path: KeyPath) -> Stage | None:
        """A prune stage with all parameters of its method."""
        try:
            method = get_method(stage.method)
        except MethodError as error:
            self._refusals.add(MethodError(f"{self.where((*path, 'method'))}: {error}"), error)
            return None
        for old, new in method.renamed.items():
            if old in stage.params:
                where = self.where((*path, "params", old))
                self._refusals.add(RecipeError(f"{where}: params.{old} of method {method.name} is called {new} now"))
                return None
        try:
            given = one_amount(stage.params, self._origins, (*path, "params"))
        except RecipeError as error:
            self._refusals.add(error, error.__cause__)
            return None
        for name in stage.params.keys() - given.keys():
            self._origins.pop((*path, "params", name), None)
        params = self._validated(method.params_class, given, (*path, "params"), extra="forbid")
        if params is None:
            return None
        return dataclasses.replace(stage, params=dataclasses.asdict(params))  # type: ignore[no-any-return]

    def _validated(self, cls: type[Any], raw: Any, path: KeyPath, extra: str | None = None) -> Any:
        """The value as an instance of `cls`, without what was refused in it; None if it is none then."""
        if extra == "forbid" and isinstance(raw, dict):  # a method's own dataclass says nothing about extra keys
            for key in raw:
                self._refuse(self._unknown(cls, key, (*path, key)))
        try:
            return _adapter(cls).validate_python(_with_lists(cls, raw))
        except ValidationError as error:
            wrong: dict[KeyPath, RecipeError] = {}
            for one in error.errors():
                mistake = self._mistake(cls, one, path)
                wrong.setdefault(self._written(one, path), mistake)  # of a union, what its first type says
            for each in wrong.values():
                self._refusals.add(each, error)
            rest = _without([place[len(path) :] for place in wrong], raw)
            try:
                return _adapter(cls).validate_python(_with_lists(cls, rest))
            except ValidationError:
                return None

    def _written(self, error: Mapping[str, Any], path: KeyPath) -> KeyPath:
        """The path of a wrong value as far as it was written: pydantic adds which type of a union it tried."""
        here: KeyPath = (*path, *error["loc"])
        if error["type"] == "missing":
            return here
        while len(here) > len(path) and here not in self._origins:
            here = here[:-1]
        return here

    def _mistake(self, cls: type[Any], error: Mapping[str, Any], path: KeyPath) -> RecipeError:
        """What to say of an error that pydantic has found."""
        here: KeyPath = (*path, *error["loc"])
        if error["type"] in ("unexpected_keyword_argument", "dataclass_type"):
            mistake = self._unknown(cls, str(here[-1]) if here else "", here)
            if mistake is not None:
                return mistake
        given = "" if error["type"] == "missing" else f" (got {error['input']!r})"
        message = refusal(error)
        where = self.where(here)
        name = ".".join(str(part) for part in here) or cls.__name__
        text = f"{where} {message}" if where.startswith("--") else f"{where}: {name} {message}"
        meant = percentage_meant(error["input"]) if _wants_share(cls, error) else ""
        return RecipeError(f"{text}{given}{meant}")

    def _refuse(self, mistake: PruneError | None) -> None:
        if mistake is not None:
            self._refusals.add(mistake)

    def _unknown(self, cls: type[Any], key: str, path: KeyPath) -> RecipeError | None:
        """The mistake that a key is, if `cls` has none of that name."""
        raw_owner: Any = cls
        if raw_owner is Recipe and len(path) > 1:
            raw_owner = {"model": ModelSection, "data": DataSection}.get(str(path[0]), Recipe)
        names = [field.name for field in dataclasses.fields(raw_owner)]
        if raw_owner is Recipe:
            names.append("extends")
        if key in names:
            return None
        where = self.where((*path, "<key>"))
        if raw_owner is Recipe and len(path) < 2 and key in ("recipe", "axes"):
            return RecipeError(f"{where}: this is a sweep (it has {key!r}); use prune sweep")
        deeper = _deeper(key) if raw_owner is Recipe else ""
        close = [deeper] if deeper else nearest(key, names, count=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        return RecipeError(f"{where}: unknown key {key!r}; {hint}")

    def where(self, path: KeyPath) -> str:
        """See `where_written`."""
        return where_written(self._origins, path)


def where_written(origins: Mapping[KeyPath, str], path: KeyPath) -> str:
    """Where a value was written, or the nearest thing around it.

    Args:
        origins: Where values were written.
        path: Of the value; with "<key>" at its end, of its key.
    """
    if path and path[-1] == "<key>" and path not in origins:
        path = path[:-1]
    while path and path not in origins:
        path = path[:-1]
    return origins.get(path, "recipe")


def _without(paths: Sequence[KeyPath], raw: Any) -> Any:
    """The values without those at the paths."""
    if not isinstance(raw, dict) or () in paths:
        return None
    rest = {}
    for key, value in raw.items():
        inside = [path[1:] for path in paths if path[:1] == (key,)]
        if () not in inside:
            rest[key] = _without(inside, value) if inside and isinstance(value, dict) else value
    return rest


def _with_lists(cls: type[Any], raw: Any) -> Any:
    """The same with lists in the place of texts that stand for lists of one."""
    if not isinstance(raw, dict):
        return raw
    if cls is not Recipe:
        return listed(cls, raw)
    sections = {"model": ModelSection, "data": DataSection}
    whole = listed(cls, raw)
    return {key: _with_lists(sections[key], value) if key in sections else value for key, value in whole.items()}


_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    """What checks values, made once: a sweep resolves thousands of plans."""
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def _deeper(key: str) -> str:
    """Where a key belongs that was written at the top of a recipe, for instance `stages.0.params.ratio`."""
    places: dict[str, Sequence[type[Any]]] = {
        "model": [ModelSection],
        "data": [DataSection],
        "stages.0": [*STAGES.values()],
    }
    for place, owners in places.items():
        if any(key == field.name for owner in owners for field in fields_of(owner)):
            return f"{place}.{key}"
    methods = [get_method(name).params_class for name in ("l1", "magnitude", "token")]
    return f"stages.0.params.{key}" if any(key == field.name for cls in methods for field in fields_of(cls)) else ""


def _wants_share(cls: type[Any], error: Mapping[str, Any]) -> bool:
    """Whether pydantic has refused a value that has to be at most 1."""
    if {error.get("ctx", {}).get(bound) for bound in ("lt", "le")} & {1}:
        return True
    owner = {"model": ModelSection, "data": DataSection}.get(str(error["loc"][0]), cls) if error["loc"] else cls
    return any(field.share for field in fields_of(owner) if field.name in error["loc"])
