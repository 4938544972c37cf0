"""From recipe, --set and flags to one complete plan that knows where each value comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prunecli.bounds import percentage_meant
from prunecli.checkpoint.confinement import stays_inside
from prunecli.data.catalog import is_named
from prunecli.errors import DataError, MethodError, RecipeError, nearest, unknown
from prunecli.methods.registry import get_method
from prunecli.own_code import PREFIX, allow
from prunecli.recipe.exclusions import refuse_in_memory, refuse_two_amounts
from prunecli.recipe.fields import fields_of
from prunecli.recipe.loader import ENVIRONMENT, Document, KeyPath, load_yaml, parse_value_and_templates
from prunecli.recipe.schema import STAGES, DataSection, ModelSection, Recipe, Stage

_MAX_EXTENDS = 8
COMMAND_LINE = "command line"
"""Source of a document that is no file."""


@dataclass(frozen=True)
class Override:
    """One value set from outside the recipe: where it goes, what it is, who said so, and what was written for it."""

    path: KeyPath
    value: Any
    origin: str
    templates: Mapping[KeyPath, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A complete recipe, and for every value that is not a default where it was written."""

    recipe: Recipe
    origins: Mapping[KeyPath, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted path, value, origin) of every value, in order."""
        return [
            (".".join(map(str, path)), value, self.origins.get(path, "default"))
            for path, value in _leaves(dataclasses.asdict(self.recipe), ())
        ]

    def written(self, *path: str | int) -> set[str | int]:
        """The keys right below `path` that the recipe, --set or a flag has."""
        return {origin[len(path)] for origin in self.origins if origin[: len(path)] == path and len(origin) > len(path)}

    def only(self, index: int) -> Plan:
        """The plan with one of its stages alone."""
        origins = {
            ("stages", 0, *path[2:]) if path[:2] == ("stages", index) else path: origin
            for path, origin in self.origins.items()
            if path[:1] != ("stages",) or len(path) == 1 or path[1] == index
        }
        return Plan(dataclasses.replace(self.recipe, stages=(self.recipe.stages[index],)), origins)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: itself a valid recipe."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self.recipe))
        return plain


def parse_set(text: str) -> Override:
    """Parses one --set KEY=VALUE, for instance "stages.1.params.ratio=0.3".

    Raises:
        RecipeError: There is no "=".
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text}: write it as KEY=VALUE, for instance --set data.name=cifar10")
    path = tuple(int(part) if part.isascii() and part.isdigit() else part for part in key.strip().split("."))
    origin = f"--set {key.strip()}"
    parsed, templates = parse_value_and_templates(value, origin)
    return Override(path, parsed, origin, templates)


def resolve(document: Document | None, overrides: Iterable[Override] = (), *, confined: bool = True) -> Plan:
    """Merges everything and checks it.

    Precedence: later overrides, earlier overrides, the recipe, what it extends, defaults. Mappings merge, lists
    replace.

    Args:
        document: The recipe file, if there is one.
        overrides: Values of --set and then of flags.
        confined: Whether networks that the recipe itself names have to lie in its folder or the current one.

    Raises:
        RecipeError: Something is wrong; the message has file, line and column, or the flag.
    """
    data, origins = _with_extended(document, ()) if document is not None else ({}, {})
    for override in overrides:
        _assign(data, origins, override)
    if document is not None and confined:
        _confine(data, origins, Path(document.source).parent)
    _allow_named_code(data, origins, typed=document is None or document.source == COMMAND_LINE)
    recipe = _Checker(origins).recipe(data)
    return Plan(dataclasses.replace(recipe, data=_with_name(recipe.data, origins)), origins)


def _with_name(data: DataSection, origins: Mapping[KeyPath, str]) -> DataSection:
    """The same with the name of the data set that lies at a path."""
    if data.name is None or is_named(data.name):
        return data
    from prunecli.data.naming import named_data  # reading what lies there takes more imports than most plans need

    try:
        return dataclasses.replace(data, name=named_data(data.name))
    except DataError as error:
        where = origins.get(("data", "name"), "data.name")
        raise DataError(f"{where}{'' if where.startswith('--') else ':'} {error}") from error


def load_plan(path: Path, overrides: Iterable[Override] = ()) -> Plan:
    """Reads a recipe file and resolves it; see `resolve`."""
    return resolve(load_yaml(path), overrides)


def recipe_json_schema() -> dict[str, Any]:
    """JSON schema of recipe files, for editors."""
    schema = TypeAdapter(Recipe).json_schema()
    schema["title"] = "prune recipe"
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe that this one changes."}
    _describe(schema, [Recipe, ModelSection, DataSection, *STAGES.values()])
    for stage in STAGES.values():
        schema["$defs"][stage.__name__].setdefault("required", []).append("stage")
    return schema


def _describe(schema: dict[str, Any], classes: Sequence[type[Any]]) -> None:
    for cls in classes:
        properties = (schema if cls is Recipe else schema["$defs"][cls.__name__])["properties"]
        for field in fields_of(cls):
            if field.doc:
                properties[field.name]["description"] = field.doc


def _with_extended(document: Document, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    own = {key: value for key, value in document.data.items() if key != "extends"}
    origins = dict(document.positions)
    if "extends" not in document.data:
        return own, origins
    where = document.positions[("extends",)]
    base = document.data["extends"]
    here = Path(document.source).resolve()
    if not isinstance(base, str):
        raise RecipeError(f"{where}: extends has to be the path of a recipe")
    target = (here.parent / base).resolve()
    top = seen[0] if seen else here
    if not stays_inside(target, top.parent):
        raise RecipeError(f"{where}: extends {base} leads out of {top.parent}; copy that recipe into the folder")
    if target in (*seen, here) or len(seen) >= _MAX_EXTENDS:
        raise RecipeError(f"{where}: {base} extends itself, directly or through others")
    shown = Path(document.source).parent / base
    data, merged = _with_extended(load_yaml(shown), (*seen, here))
    _merge(data, merged, own, origins, ())
    return data, merged


def _confine(data: Mapping[str, Any], origins: Mapping[KeyPath, str], folder: Path) -> None:
    """Refuses network files outside the recipe's folder and the current one, unless the user's environment names them.

    Flags and --set are the user's own words, too.
    """
    for path, value in outside(data, origins, folder):
        name = ".".join(map(str, path))
        raise RecipeError(
            f"{origins[path]}: {name} {value} leads out of the recipe's folder and this one; if you trust it, give "
            f"--set {name}={value}"
        )


def outside(data: Mapping[str, Any], origins: Mapping[KeyPath, str], folder: Path) -> Iterator[tuple[KeyPath, str]]:
    """The network files that a recipe in `folder` may not name by itself, because they lie elsewhere."""
    networks: list[tuple[KeyPath, Any]] = []
    if isinstance(data.get("model"), dict):
        networks += [(("model", key), data["model"].get(key)) for key in ("weights", "ref", "example")]
    if isinstance(data.get("data"), dict):
        networks.append((("data", "tokenizer"), data["data"].get("tokenizer")))
    for index, stage in enumerate(data["stages"] if isinstance(data.get("stages"), list) else []):
        if isinstance(stage, dict) and stage.get("teacher") != "parent":
            networks.append((("stages", index, "teacher"), stage.get("teacher")))
        if isinstance(stage, dict) and isinstance(stage.get("params"), dict):
            networks.append((("stages", index, "params", "rewind"), stage["params"].get("rewind")))
    for path, value in networks:
        if not isinstance(value, str) or (*path, ENVIRONMENT) in origins:
            continue
        if origins.get(path, "--").startswith("--"):
            continue
        source, _, opened = value.partition(":")
        if not stays_inside(opened if path[-1] == "ref" and source != PREFIX[:-1] else value, folder, Path()):
            yield path, value


def _allow_named_code(data: Mapping[str, Any], origins: Mapping[KeyPath, str], *, typed: bool) -> None:
    """Lets code run that the user names himself: on the command line, not in a recipe."""
    for section, key in (("model", "ref"), ("data", "name")):
        inner = data.get(section)
        value = inner.get(key) if isinstance(inner, dict) else None
        own = origins.get((section, key), "--" if typed else "").startswith("--")
        if isinstance(value, str) and value.startswith(PREFIX) and own:
            allow(value)


def _merge(
    into: dict[str, Any],
    into_origins: dict[KeyPath, str],
    data: Mapping[str, Any],
    origins: Mapping[KeyPath, str],
    path: KeyPath,
) -> None:
    for key, value in data.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], into_origins, value, origins, here)
            continue
        into[key] = value
        for old in [path for path in into_origins if path[: len(here)] == here]:
            del into_origins[old]
        into_origins.update({path: where for path, where in origins.items() if path[: len(here)] == here})


def _assign(data: dict[str, Any], origins: dict[KeyPath, str], override: Override) -> None:
    target: Any = data
    for depth, part in enumerate(override.path[:-1], start=1):
        target = _step(target, part, override, depth - 1)
        if not isinstance(target, (dict, list)):
            where = ".".join(map(str, override.path[:depth]))
            raise RecipeError(f"{override.origin}: {where} holds a single value")
    _check_index(target, override.path[-1], override, len(override.path) - 1)
    target[override.path[-1]] = override.value
    for old in [path for path in origins if path[: len(override.path)] == override.path]:
        del origins[old]
    origins[override.path] = override.origin
    for path, _ in _leaves(override.value, override.path):
        origins[path] = override.origin
    origins.update({(*override.path, *path): text for path, text in override.templates.items()})


def _step(target: Any, part: str | int, override: Override, depth: int) -> Any:
    """What lies at `part` of a mapping or list; a mapping that is not there yet is made."""
    _check_index(target, part, override, depth)
    if isinstance(target, dict) and target.get(part) is None:
        target[part] = {}
    return target[part]


def _check_index(target: Any, part: str | int, override: Override, depth: int) -> None:
    if isinstance(target, list) and (not isinstance(part, int) or part >= len(target)):
        where = ".".join(map(str, override.path[:depth]))
        raise RecipeError(f"{override.origin}: {where} has entries 0 to {len(target) - 1}, not {part!r}")


class _Checker:
    """Validates raw data piece by piece, so that an error has one cause and one position."""

    def __init__(self, origins: Mapping[KeyPath, str]) -> None:
        self._origins = origins

    def recipe(self, data: dict[str, Any]) -> Recipe:
        stages = data.get("stages", [])
        if not isinstance(stages, list):
            raise RecipeError(f"{self._where(('stages',))}: stages has to be a list")
        top = {key: value for key, value in data.items() if key != "stages"}
        recipe: Recipe = self._validated(Recipe, top, ())
        checked = tuple(self._stage(raw, ("stages", index)) for index, raw in enumerate(stages))
        return dataclasses.replace(recipe, stages=checked)

    def _stage(self, raw: Any, path: KeyPath) -> Stage:
        if not isinstance(raw, dict) or "stage" not in raw:
            raise RecipeError(f"{self._where(path)}: every stage needs `stage:`, one of {', '.join(STAGES)}")
        kind = raw["stage"]
        if kind not in STAGES:
            raise RecipeError(f"{self._where((*path, 'stage'))}: {unknown('stage', str(kind), STAGES)}")
        if kind == "prune":
            refuse_in_memory(raw, self._origins.get((*path, "offload")))
        stage: Any = self._validated(STAGES[kind], raw, path)
        if kind == "prune":
            try:
                method = get_method(stage.method)
            except MethodError as error:
                raise MethodError(f"{self._where((*path, 'method'))}: {error}") from error
            params = self._validated(method.params_class, stage.params, (*path, "params"), extra="forbid")
            refuse_two_amounts(self._origins, (*path, "params"))
            stage = dataclasses.replace(stage, params=dataclasses.asdict(params))
        return stage  # type: ignore[no-any-return]

    def _validated(self, cls: type[Any], raw: Any, path: KeyPath, extra: str | None = None) -> Any:
        if extra == "forbid" and isinstance(raw, dict):  # a method's own dataclass says nothing about extra keys
            for key in raw:
                self._known(cls, key, (*path, key))
        try:
            return _adapter(cls).validate_python(raw)
        except ValidationError as error:
            first = error.errors()[0]
            here = (*path, *first["loc"])
            if first["type"] in ("unexpected_keyword_argument", "dataclass_type"):
                self._known(cls, str(here[-1]), here)
            given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
            message = first["msg"].removeprefix("Value error, ").replace("Input should be", "has to be")
            where = self._where(here)
            name = ".".join(str(part) for part in here) or cls.__name__
            text = f"{where} {message}" if where.startswith("--") else f"{where}: {name} {message}"
            meant = percentage_meant(first["input"]) if _wants_share(cls, first) else ""
            raise RecipeError(f"{text}{given}{meant}") from error

    def _known(self, cls: type[Any], key: str, path: KeyPath) -> None:
        raw_owner: Any = cls
        if raw_owner is Recipe and len(path) > 1:
            raw_owner = {"model": ModelSection, "data": DataSection}.get(str(path[0]), Recipe)
        names = [field.name for field in dataclasses.fields(raw_owner)]
        if raw_owner is Recipe:
            names.append("extends")
        if key in names:
            return
        if raw_owner is Recipe and len(path) < 2 and key in ("recipe", "axes"):
            raise RecipeError(f"{self._where((*path, '<key>'))}: this is a sweep (it has {key!r}); use prune sweep")
        deeper = _deeper(key) if raw_owner is Recipe else ""
        close = [deeper] if deeper else nearest(key, names, count=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names)}"
        raise RecipeError(f"{self._where((*path, '<key>'))}: unknown key {key!r}; {hint}")

    def _where(self, path: KeyPath) -> str:
        """Where `path` was written, or the nearest thing around it."""
        if path and path[-1] == "<key>" and path not in self._origins:
            path = path[:-1]
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, "recipe")


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


def _leaves(value: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, key))]
    if isinstance(value, (list, tuple)) and value and any(isinstance(item, dict) for item in value):
        return [leaf for index, item in enumerate(value) for leaf in _leaves(item, (*path, index))]
    return [(path, value)]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
