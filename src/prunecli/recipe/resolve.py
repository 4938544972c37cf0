"""From recipe, --set and flags to one complete plan that knows where each value comes from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.confinement import stays_inside
from prunecli.data.catalog import is_named
from prunecli.errors import DataError, PruneError, RecipeError
from prunecli.own_code import PREFIX, allow
from prunecli.recipe.checking import Checker, where_written
from prunecli.recipe.loader import ENVIRONMENT, Document, KeyPath, load_yaml, parse_value_and_templates
from prunecli.recipe.origins import COMMAND_LINE, leaves, origin_of, typed_origins
from prunecli.recipe.refusals import Refusals
from prunecli.recipe.schema import DataSection, Recipe

_MAX_EXTENDS = 8
_POSITION = re.compile(r".+:\d+:\d+", re.DOTALL)


@dataclass(frozen=True)
class Override:
    """One value set from outside the recipe: where it goes, what it is, who said so, and what was written for it."""

    path: KeyPath
    value: Any
    origin: str
    templates: Mapping[KeyPath, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A complete recipe, and for every value that is not a default where it was written.

    Attributes:
        recipe: All values.
        origins: Where they were written.
        places: The index of each stage among those that were written, if some of them were refused.
    """

    recipe: Recipe
    origins: Mapping[KeyPath, str]
    places: tuple[int, ...] | None = None

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted path, value, origin) of every value, in order."""
        return [
            (".".join(map(str, path)), value, origin_of(path, self.origins))
            for path, value in leaves(dataclasses.asdict(self.recipe), ())
        ]

    def written(self, *path: str | int) -> set[str | int]:
        """The keys right below `path` that the recipe, --set or a flag has."""
        return {origin[len(path)] for origin in self.origins if origin[: len(path)] == path and len(origin) > len(path)}

    def located(self, path: KeyPath, error: PruneError) -> PruneError:
        """The error with the file, line and column of the value that it is about, if that is written in a file.

        Args:
            path: Of the value.
            error: What to say.
        """
        where = where_written(self.origins, path)
        return type(error)(f"{where}: {error}") if _POSITION.fullmatch(where) else error

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
    plan = _resolved(document, overrides, Refusals(), confined=confined)
    assert plan is not None, "the first mistake is raised"
    return plan


def plan_and_mistakes(path: Path) -> tuple[Plan | None, list[PruneError]]:
    """Reads a recipe file and resolves it, whatever is wrong with it.

    Returns:
        The plan without what is wrong, None if nothing is left; and all mistakes, each with file, line and column.
    """
    refusals = Refusals(keep=True)
    try:
        return _resolved(load_yaml(path, refusals), (), refusals, confined=True), refusals.kept
    except PruneError as error:  # it is no YAML, or cannot be read
        return None, [*refusals.kept, error]


def _resolved(
    document: Document | None, overrides: Iterable[Override], refusals: Refusals, *, confined: bool
) -> Plan | None:
    data, origins = _with_extended(document, (), refusals) if document is not None else ({}, {})
    for override in overrides:
        _assign(data, origins, override)
    if document is not None and confined:
        _confine(data, origins, Path(document.source).parent, refusals)
    _allow_named_code(data, origins, typed=document is None or document.source == COMMAND_LINE)
    checker = Checker(origins, refusals)
    recipe = checker.recipe(data)
    if recipe is None:
        return None
    if document is not None and document.source == COMMAND_LINE:
        origins = {**typed_origins(document.data), **origins}
    named = dataclasses.replace(recipe, data=_with_name(recipe.data, origins, refusals))
    return Plan(named, origins, checker.places)


def _with_name(data: DataSection, origins: Mapping[KeyPath, str], refusals: Refusals) -> DataSection:
    """The same with the name of the data set that lies at a path."""
    if data.name is None or is_named(data.name):
        return data
    from prunecli.data.naming import named_data  # reading what lies there takes more imports than most plans need

    try:
        return dataclasses.replace(data, name=named_data(data.name))
    except DataError as error:
        where = origins.get(("data", "name"), "data.name")
        refusals.add(DataError(f"{where}{'' if where.startswith('--') else ':'} {error}"), error)
        return dataclasses.replace(data, name=None)


def load_plan(path: Path, overrides: Iterable[Override] = ()) -> Plan:
    """Reads a recipe file and resolves it; see `resolve`."""
    return resolve(load_yaml(path), overrides)


def _with_extended(
    document: Document, seen: tuple[Path, ...], refusals: Refusals
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    own = {key: value for key, value in document.data.items() if key != "extends"}
    origins = dict(document.positions)
    if "extends" not in document.data:
        return own, origins
    where = document.positions[("extends",)]
    base = document.data["extends"]
    here = Path(document.source).resolve()
    mistake = _cannot_extend(base, here, seen)
    if mistake is not None:
        refusals.add(RecipeError(f"{where}: {mistake}"))
        return own, origins
    shown = Path(document.source).parent / base
    try:
        extended = load_yaml(shown, refusals)
    except RecipeError as error:
        refusals.add(RecipeError(f"{where}: extends {base}: {error}"), error)
        return own, origins
    data, merged = _with_extended(extended, (*seen, here), refusals)
    _merge(data, merged, own, origins, ())
    return data, merged


def _cannot_extend(base: Any, here: Path, seen: tuple[Path, ...]) -> str | None:
    """Why the recipe `here` cannot extend `base`, if so; `seen` are those that extend it."""
    if not isinstance(base, str):
        return "extends has to be the path of a recipe"
    target = (here.parent / base).resolve()
    top = seen[0] if seen else here
    if not stays_inside(target, top.parent):
        return f"extends {base} leads out of {top.parent}; copy that recipe into the folder"
    if target in (*seen, here) or len(seen) >= _MAX_EXTENDS:
        return f"{base} extends itself, directly or through others"
    return None


def _confine(data: Mapping[str, Any], origins: Mapping[KeyPath, str], folder: Path, refusals: Refusals) -> None:
    """Refuses network files outside the recipe's folder and the current one, unless the user's environment names them.

    Flags and --set are the user's own words, too.
    """
    for path, value in outside(data, origins, folder):
        name = ".".join(map(str, path))
        refusals.add(
            RecipeError(
                f"{origins[path]}: {name} {value} leads out of the recipe's folder and this one; if you trust it, give "
                f"--set {name}={value}"
            )
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
    for path, _ in leaves(override.value, override.path):
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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
