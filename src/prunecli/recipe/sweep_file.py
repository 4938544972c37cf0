"""Sweep files: a recipe, the values that change, which of their combinations are tried, and what is looked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_doc import Doc
from pydantic import TypeAdapter

from prunecli.bounds import Ge
from prunecli.errors import RecipeError, nearest
from prunecli.recipe.fields import fields_of
from prunecli.recipe.loader import ENVIRONMENT, Document, KeyPath, load_yaml, parse_value
from prunecli.recipe.shipped import SUFFIXES, located, shipped_sweep

SearchKind = Literal["grid", "random", "adaptive"]
_MOST_VALUES = 10_000
_DIGITS = 6
"""Significant digits of values that a range gives, so that plans stay readable."""


@dataclass(frozen=True)
class Range:
    """Values between two numbers, both included; whole numbers if both are.

    Attributes:
        log: Whether values are spread evenly over their logarithms.
    """

    low: Annotated[float, Doc("The lowest value.")]
    high: Annotated[float, Doc("The highest value.")]
    steps: Annotated[int | None, Ge(2), Doc("How many values, evenly spread; a grid needs them.")] = None
    log: Annotated[bool, Doc("Spread evenly over logarithms.")] = False

    @property
    def whole(self) -> bool:
        """Whether values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float | int:
        """The value `share` of the way from the lowest to the highest.

        Args:
            share: From 0 to 1.
        """
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)  # the logarithm's last bits may lead out
        return round(value) if self.whole else self.rounded(value)

    def rounded(self, value: float) -> float:
        """A value with as many digits as plans have."""
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)

    def points(self) -> list[float | int]:
        """All values of a range with steps, without repetitions."""
        assert self.steps is not None
        return list(dict.fromkeys(self.at(index / (self.steps - 1)) for index in range(self.steps)))


@dataclass(frozen=True)
class Axis:
    """One thing that changes from cell to cell.

    Attributes:
        name: As the file has it: `ratio`, or `stages.2.params.ratio`.
        values: The values, or the range that they are taken from.
        origin: Where the name stands, as file:line:column.
        origins: Where each value stands; of a range, where it begins.
    """

    name: str
    values: tuple[Any, ...] | Range
    origin: str
    origins: tuple[str, ...]

    def listed(self) -> tuple[Any, ...] | None:
        """All values, if there are so many and no more."""
        if isinstance(self.values, Range):
            return tuple(self.values.points()) if self.values.steps is not None else None
        return self.values

    def origin_of(self, value: Any) -> str:
        """Where a value stands."""
        if isinstance(self.values, Range):
            return self.origins[0]
        kind = type(value)
        return next(
            origin
            for other, origin in zip(self.values, self.origins, strict=True)
            if type(other) is kind and other == value
        )


@dataclass(frozen=True)
class Search:
    """Which combinations are tried."""

    kind: Annotated[
        SearchKind,
        Doc("grid: all combinations; random: drawn ones; adaptive: drawn where the objective was best so far."),
    ] = "grid"
    cells: Annotated[int | None, Ge(1), Doc("How many, for random and adaptive.")] = None
    seed: Annotated[int, Ge(0), Doc("Seed of what is drawn.")] = 0


@dataclass(frozen=True)
class SweepFile:
    """A sweep as it is written."""

    recipe: Annotated[str, Doc("The recipe whose values change: a file beside this one, or the name of a shipped one.")]
    axes: Annotated[
        Mapping[str, Any],
        Doc("What changes: for each name a list of values, or a range {low, high, steps, log}; see docs/sweep.md."),
    ]
    version: Literal[1] = 1
    description: Annotated[str, Doc("What the sweep is for.")] = ""
    set: Annotated[
        Mapping[str, Any], Doc("Recipe values that are the same in all cells, by the names that axes take.")
    ] = field(default_factory=dict)
    search: Annotated[SearchKind | Search, Doc("Which combinations are tried: grid, or {kind, cells, seed}.")] = "grid"
    objective: Annotated[
        str | None, Doc("What is looked for: max top1, or min macs where top1_drop < 1; adaptive needs it.")
    ] = None


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read and checked, but for what only its recipe can tell.

    Attributes:
        path: The file.
        recipe: The recipe's file.
        axes: What changes, in order.
        fixed: What is the same in all cells: dotted key, value, where it stands.
        search: Which combinations are tried.
        objective: What is looked for.
        objective_origin: Where that stands.
    """

    path: Path
    recipe: Path
    axes: tuple[Axis, ...]
    fixed: tuple[tuple[str, Any, str], ...] = ()
    search: Search = field(default_factory=Search)
    objective: str | None = None
    objective_origin: str = "objective"
    description: str = ""


def load_sweep(path: Path) -> Sweep:
    """Reads a sweep file.

    Raises:
        RecipeError: It is missing or wrong; the message has file, line and column.
    """
    document = load_yaml(_found(path), holds="a sweep file is a mapping (recipe:, axes:)")
    keys = [field.name for field in fields_of(SweepFile)]
    _only(document, (), document.data, keys)
    if "recipe" not in document.data and ("stages" in document.data or "model" in document.data):
        raise RecipeError(
            f"{path}: is a recipe, and a sweep names one in `recipe:` beside `axes:`; run it by prune run"
        )
    for name in ("recipe", "axes"):
        if name not in document.data:
            raise RecipeError(f"{path}: a sweep needs `{name}:`")
    if document.data.get("version", 1) != 1:
        raise RecipeError(f"{document.positions[('version',)]}: version has to be 1")
    objective = _text(document, "objective")
    search = _search(document)
    if search.kind == "adaptive" and objective is None:
        raise RecipeError(
            f"{document.positions[('search',)]}: an adaptive search needs `objective:`, for instance max top1"
        )
    return Sweep(
        path=path,
        recipe=_recipe(document, path),
        axes=_axes(document, search),
        fixed=_fixed(document),
        search=search,
        objective=objective,
        objective_origin=document.positions.get(("objective",), "objective"),
        description=_text(document, "description") or "",
    )


def sweep_json_schema() -> dict[str, Any]:
    """JSON schema of sweep files, for editors."""
    schema = TypeAdapter(SweepFile).json_schema()
    schema["title"], schema["additionalProperties"] = "prune sweep", False
    for owner, properties in ((SweepFile, schema["properties"]), (Search, schema["$defs"]["Search"]["properties"])):
        for info in fields_of(owner):
            if info.doc:
                properties[info.name]["description"] = info.doc
    ranged = TypeAdapter(Range).json_schema()
    for info in fields_of(Range):
        ranged["properties"][info.name]["description"] = info.doc
    ranged["additionalProperties"] = schema["$defs"]["Search"]["additionalProperties"] = False
    values = {"anyOf": [{"type": "array", "minItems": 1}, ranged]}
    schema["properties"]["axes"] |= {"additionalProperties": values, "minProperties": 1}
    return schema


def _found(path: Path) -> Path:
    """The file, or a shipped sweep of that name."""
    if path.exists() or path.suffix in SUFFIXES or path.parent != Path():
        return path
    return shipped_sweep(path.name)


def _only(document: Document, path: KeyPath, mapping: Mapping[str, Any], keys: list[str]) -> None:
    for key in mapping:
        if key not in keys:
            if not path and key in ("model", "data", "stages"):
                where = document.positions[(key, "<key>")]
                raise RecipeError(f"{where}: this is a recipe (it has {key!r}); use prune run, or name it in a sweep")
            close = nearest(key, keys, count=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(keys)}"
            raise RecipeError(f"{document.positions[(*path, key, '<key>')]}: unknown key {key!r}; {hint}")


def _text(document: Document, key: str) -> str | None:
    value = document.data.get(key)
    if value is not None and not isinstance(value, str):
        raise RecipeError(f"{document.positions[(key,)]}: {key} has to be text (got {value!r})")
    return value


def _recipe(document: Document, path: Path) -> Path:
    where, named = document.positions[("recipe",)], _text(document, "recipe")
    if not named:
        raise RecipeError(f"{where}: recipe has to be the path of a recipe, or the name of a shipped one")
    beside = Path(document.source).parent / named
    if beside.is_file():
        return beside
    if not named.endswith(SUFFIXES):
        try:
            return located(Path(named))
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    raise RecipeError(f"{where}: {beside}: no such recipe")


def _search(document: Document) -> Search:
    raw = document.data.get("search", "grid")
    where = document.positions.get(("search",), "")
    given = {"kind": raw} if isinstance(raw, str) else raw
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: search is a kind, or a mapping {{kind, cells, seed}}")
    _only(document, ("search",), given, [info.name for info in fields_of(Search)])
    kinds = get_args(SearchKind)
    kind = given.get("kind", "grid")
    if kind not in kinds:
        close = nearest(str(kind), kinds, count=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(kinds)}"
        raise RecipeError(f"{document.positions.get(('search', 'kind'), where)}: unknown search {kind!r}: {hint}")
    for name, least in (("cells", 1), ("seed", 0)):
        value = given.get(name, least)
        if type(value) is not int or value < least:
            raise RecipeError(
                f"{document.positions[('search', name)]}: search.{name} has to be a whole number of at least {least} "
                f"(got {value!r})"
            )
    if kind == "grid" and given.get("cells") is not None:
        raise RecipeError(f"{document.positions[('search', 'cells')]}: a grid has all combinations; leave cells out")
    if kind != "grid" and given.get("cells") is None:
        raise RecipeError(f"{where}: a {kind} search needs to know how many: {{kind: {kind}, cells: 20}}")
    return Search(kind, given.get("cells"), given.get("seed", 0))


def _fixed(document: Document) -> tuple[tuple[str, Any, str], ...]:
    given = document.data.get("set", {})
    if not isinstance(given, dict):
        raise RecipeError(f"{document.positions[('set',)]}: set is a mapping of dotted keys to values")
    return tuple((key, value, document.positions[("set", key)]) for key, value in given.items())


def _axes(document: Document, search: Search) -> tuple[Axis, ...]:
    given = document.data["axes"]
    if not isinstance(given, dict) or not given:
        raise RecipeError(f"{document.positions[('axes',)]}: axes is a mapping, for instance `ratio: [0.3, 0.5]`")
    return tuple(_axis(document, name, values, search) for name, values in given.items())


def _axis(document: Document, name: str, values: Any, search: Search) -> Axis:
    path: KeyPath = ("axes", name)
    where, key = document.positions[path], document.positions[(*path, "<key>")]
    if isinstance(values, dict):
        ranged = _range(document, path, values)
        if search.kind == "grid" and ranged.steps is None:
            raise RecipeError(f"{where}: axis {name!r}: a grid needs to know how many values: add steps, or list them")
        return Axis(name, ranged, key, (where,))
    if not isinstance(values, list) or not values:
        raise RecipeError(
            f"{where}: axis {name!r} has to be a list of values, or a range {{low, high}} (got {values!r})"
        )
    if len(values) > _MOST_VALUES:
        raise RecipeError(f"{where}: axis {name!r} has {len(values):,} values; at most {_MOST_VALUES:,}")
    origins = tuple(document.positions[(*path, index)] for index in range(len(values)))
    values = [_from_environment(document, (*path, index), value) for index, value in enumerate(values)]
    for index, value in enumerate(values):
        if any(type(other) is type(value) and other == value for other in values[:index]):
            raise RecipeError(f"{origins[index]}: axis {name!r} has {value!r} twice")
    return Axis(name, tuple(values), key, origins)


def _from_environment(document: Document, path: KeyPath, value: Any) -> Any:
    """A value as it would be if it were written there: a variable of the environment holds nothing but text."""
    if isinstance(value, str) and (*path, ENVIRONMENT) in document.positions:
        return parse_value(value, document.positions[path])
    return value


def _range(document: Document, path: KeyPath, given: Mapping[str, Any]) -> Range:
    where, name = document.positions[path], path[-1]
    _only(document, path, given, [info.name for info in fields_of(Range)])
    for key in ("low", "high"):
        value: Any = given.get(key)
        if type(value) not in (int, float) or not math.isfinite(value):
            position = document.positions.get((*path, key), where)
            raise RecipeError(f"{position}: axis {name!r} needs a number for {key} (got {value!r})")
    low, high, steps, log = given["low"], given["high"], given.get("steps"), given.get("log", False)
    if low >= high:
        raise RecipeError(f"{where}: axis {name!r}: low {low:g} has to be less than high {high:g}")
    if steps is not None and (type(steps) is not int or not 2 <= steps <= _MOST_VALUES):
        raise RecipeError(f"{document.positions[(*path, 'steps')]}: axis {name!r}: steps has to be 2 or more")
    if type(log) is not bool:
        raise RecipeError(f"{document.positions[(*path, 'log')]}: axis {name!r}: log has to be true or false")
    if log and low <= 0:
        raise RecipeError(f"{where}: axis {name!r}: a range over logarithms has to be over 0 (got {low:g})")
    return Range(low, high, steps, log)
