"""What the names of a sweep's axes mean: options of its recipe, by their dotted keys or by shorter names."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_origin

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.errors import MethodError, RecipeError, meant, nearest
from prunecli.methods.registry import get_method
from prunecli.own_code import PREFIX
from prunecli.recipe.fields import fields_of
from prunecli.recipe.loader import Document, KeyPath, load_yaml
from prunecli.recipe.resolve import Override, Plan, outside, resolve
from prunecli.recipe.schema import STAGES, DataSection, ModelSection, PruneStage, Recipe
from prunecli.recipe.sweep_file import Axis, Sweep

_SHORT = {"criterion": "method"}
"""Other names of options: a structural method is called as the criterion that it ranks by."""
_SECTIONS: Mapping[str, type[Any]] = {"model": ModelSection, "data": DataSection}
_WHOLE = ("model", "data", "stages", "version", "description")
"""What is no single value; `model` is one all the same, see `_model`."""
_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Setting:
    """An axis with the option that it changes.

    Attributes:
        axis: The axis.
        path: Where its values go; `("model",)` stands for the network as a whole.
    """

    axis: Axis
    path: KeyPath

    @property
    def stage(self) -> int | None:
        """The stage that it changes; None: what comes before all stages."""
        return int(self.path[1]) if self.path[0] == "stages" else None


def settings_of(sweep: Sweep, overrides: Sequence[Override] = ()) -> tuple[Setting, ...]:
    """The options that a sweep's axes change.

    Args:
        sweep: The sweep.
        overrides: Values of --set.

    Raises:
        RecipeError: An axis matches no option or several, or two axes are about the same one; the message has file,
            line and column.
    """
    plan = _base_plan(sweep, overrides)
    found: list[Setting] = []
    for axis in sweep.axes:
        path = _path_of(axis, plan, _methods(sweep, plan))
        for other in found:
            if path[: len(other.path)] == other.path or other.path[: len(path)] == path:
                raise RecipeError(
                    f"{axis.origin}: axis {axis.name!r} changes {_dotted(path)}, and so does {other.axis.name!r}; "
                    "leave one of them out"
                )
        found.append(Setting(axis, path))
    for override in (*_fixed(sweep), *overrides):
        _refuse_overridden(override, found)
    return tuple(found)


def _refuse_overridden(override: Override, settings: Sequence[Setting]) -> None:
    """Refuses a value that no cell would have, because an axis changes the same option."""
    for setting in settings:
        changed = [("model", "ref"), ("model", "weights")] if setting.path == ("model",) else [setting.path]
        if override.path in ((), ("model",)) or any(_says(override, path) for path in changed):
            raise RecipeError(
                f"{override.origin}: {_dotted(override.path)} is the same in all cells here, and axis "
                f"{setting.axis.name!r} changes it; leave one of them out"
            )


def _says(override: Override, path: KeyPath) -> bool:
    """Whether an override is about an option, or about a part of it."""
    shared = min(len(path), len(override.path))
    if path[:shared] != override.path[:shared]:
        return False
    value = override.value
    for part in path[shared:]:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _base_plan(sweep: Sweep, overrides: Sequence[Override]) -> Plan:
    """The recipe with what is the same in all cells."""
    return resolve(_document(sweep.recipe), [*_fixed(sweep), *overrides], confined=False)


def plan_of(
    sweep: Sweep, settings: Sequence[Setting], values: Sequence[Any], overrides: Sequence[Override] = ()
) -> Plan:
    """The plan of one cell.

    Args:
        sweep: The sweep.
        settings: Its axes with their options.
        values: A value for each.
        overrides: Values of --set.

    Raises:
        PruneError: The plan is wrong; the message has file, line and column.
    """
    given = [*_fixed(sweep), *overrides]
    for setting, value in zip(settings, values, strict=True):
        given += _assigned(setting, value)
    plan = resolve(_document(sweep.recipe), given, confined=False)
    _confine(plan, sweep)
    for setting, value in zip(settings, values, strict=True):
        _check_kind(setting, value, plan)
    return plan


def _check_kind(setting: Setting, value: Any, plan: Plan) -> None:
    """Refuses text and truth values where the option takes a number, or the other way round.

    A recipe takes "0" and true for 0 and 1. On an axis they would be further cells, or the same ones under other names.
    """
    taken: Any = dataclasses.asdict(plan.recipe)
    for part in setting.path:
        taken = taken[part]
    if not isinstance(value, _SCALARS) or not isinstance(taken, _SCALARS):
        return
    if any(isinstance(value, kind) != isinstance(taken, kind) for kind in (bool, str)):
        raise RecipeError(
            f"{setting.axis.origin_of(value)}: axis {setting.axis.name!r} has {json.dumps(value)} where "
            f"{_dotted(setting.path)} is {json.dumps(taken)}; write that"
        )


def _document(recipe: Path) -> Document:
    """The recipe, read once for all cells; resolving changes what it is given."""
    status = recipe.stat()
    return copy.deepcopy(_read(recipe, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _read(recipe: Path, size: int, changed: int) -> Document:
    return load_yaml(recipe)


def _fixed(sweep: Sweep) -> list[Override]:
    """What is the same in all cells, by dotted keys or by the same short names as axes have."""
    own = [info.name for info in fields_of(Recipe)]
    short = [entry for entry in sweep.fixed if "." not in entry[0] and entry[0] not in own]
    dotted = [
        _override(_parsed(key), value, where) for key, value, where in sweep.fixed if (key, value, where) not in short
    ]
    if not short:
        return dotted
    plan = resolve(_document(sweep.recipe), dotted, confined=False)
    methods = _methods(sweep, plan)
    for key, value, _ in short:
        if _SHORT.get(key, key) == "method" and isinstance(value, str):
            methods = {index: [*names, value] for index, names in methods.items()}
    options = _options(plan, methods)
    return [*dotted, *(_override(_option(key, where, "set:", options), value, where) for key, value, where in short)]


def _override(path: KeyPath, value: Any, where: str) -> Override:
    return Override(path, value, where, {("<key>",): where})  # a message about the key points there, too


def _parsed(key: str) -> KeyPath:
    return tuple(int(part) if part.isascii() and part.isdigit() else part for part in key.split("."))


def _assigned(setting: Setting, value: Any) -> Iterator[Override]:
    where = setting.axis.origin_of(value)
    if setting.path == ("model",):
        for key, item in _model(value, where).items():
            yield _override(("model", key), item, where)
    else:
        yield _override(setting.path, value, where)


def _model(value: Any, where: str) -> dict[str, Any]:
    """A network as values of the section `model`: a reference, a weights file, or a mapping of both and more.

    A network that is named takes the place of the recipe's, whose weights are those of another one.
    """
    empty: dict[str, Any] = {"ref": None, "weights": None}
    if isinstance(value, dict):
        return empty | value
    if not isinstance(value, str):
        raise RecipeError(f"{where}: a model is a weights file, a reference such as cifar:resnet20, or a mapping")
    file = value.endswith(WEIGHT_SUFFIXES) and not value.startswith(PREFIX)
    return empty | {"weights" if file else "ref": value}


def _confine(plan: Plan, sweep: Sweep) -> None:
    """Refuses files that sweep and recipe name outside their folders and this one; --set is the user's own word."""
    data = plan.to_dict()
    leading = dict(outside(data, plan.origins, sweep.recipe.parent))
    elsewhere = dict(outside(data, plan.origins, sweep.path.parent))
    for path, value in leading.items():
        if path in elsewhere:
            name = _dotted(path)
            raise RecipeError(
                f"{plan.origins[path]}: {name} {value} leads out of the folders of sweep and recipe and this one; copy "
                f"it here, or start prune in its folder"
            )


def _methods(sweep: Sweep, plan: Plan) -> dict[int, list[str]]:
    """For each stage that prunes, the methods that it may run."""
    methods: dict[int, list[str]] = {}
    for index, stage in enumerate(plan.recipe.stages):
        if not isinstance(stage, PruneStage):
            continue
        methods[index] = [stage.method]
        for axis in sweep.axes:
            if _SHORT.get(axis.name, axis.name) in ("method", f"stages.{index}.method"):
                methods[index] += [value for value in axis.listed() or () if isinstance(value, str)]
    return methods


def _path_of(axis: Axis, plan: Plan, methods: Mapping[int, Sequence[str]]) -> KeyPath:
    if axis.name == "model":
        return ("model",)
    options = _options(plan, methods)
    name = _SHORT.get(axis.name, axis.name)
    if "." in name:
        path = _parsed(name)
        if path in options or any(path[: len(free)] == free and len(path) > len(free) for free in _open(plan)):
            return path
        raise RecipeError(_no_option(axis.name, axis.origin, "axis", [_dotted(option) for option in options]))
    return _option(axis.name, axis.origin, "axis", options)


def _option(written: str, origin: str, kind: str, options: Sequence[KeyPath]) -> KeyPath:
    """The one option whose dotted key ends in a name."""
    name = _SHORT.get(written, written)
    found = [option for option in options if option[-1] == name]
    if not found:
        short = dict.fromkeys(["model", *_SHORT, *(str(option[-1]) for option in options)])
        raise RecipeError(_no_option(written, origin, kind, [*short]))
    if len(found) > 1:
        names = " or ".join(map(_dotted, found))
        raise RecipeError(f"{origin}: {kind} {written!r} may be {names}; write one of them")
    return found[0]


def _no_option(written: str, origin: str, kind: str, names: Sequence[str]) -> str:
    close = nearest(written, names)
    hint = meant(close) if close else "`prune recipe show` lists a recipe's"
    return f"{origin}: {kind} {written!r} matches no option; {hint}"


def _options(plan: Plan, methods: Mapping[int, Sequence[str]]) -> list[KeyPath]:
    """Every single value that a recipe with these stages can have."""
    paths: list[KeyPath] = [(info.name,) for info in fields_of(Recipe) if info.name not in _WHOLE]
    for section, cls in _SECTIONS.items():
        paths += [(section, info.name) for info in fields_of(cls)]
    for index, stage in enumerate(plan.recipe.stages):
        own = [info.name for info in fields_of(STAGES[stage.stage]) if info.name not in ("stage", "params")]
        paths += [("stages", index, name) for name in own]
        names = dict.fromkeys(info for method in methods.get(index, ()) for info in _parameters(method))
        paths += [("stages", index, "params", name) for name in names]
    return paths


def _parameters(method: str) -> Iterable[str]:
    try:
        return [info.name for info in fields_of(get_method(method).params_class)]
    except MethodError:  # the plan of its cell says so, and where
        return []


def _open(plan: Plan) -> Iterator[KeyPath]:
    """Options that are mappings of the user's own keys, such as model.kwargs and params.layer_ratio."""
    yield from ((section, name) for section, cls in _SECTIONS.items() for name in _mappings(cls))
    for index, stage in enumerate(plan.recipe.stages):
        if isinstance(stage, PruneStage):
            for name in _mappings(get_method(stage.method).params_class):
                yield ("stages", index, "params", name)


def _mappings(cls: type[Any]) -> list[str]:
    origins = {info.name: get_origin(info.type) for info in fields_of(cls)}
    return [name for name, origin in origins.items() if origin in (Mapping, typing.Mapping, dict)]


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
