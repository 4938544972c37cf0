"""Plans as recipe files: what is written is read back, so that a file never says something else than its plan."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from prunecli.errors import RecipeError
from prunecli.methods.registry import get_method
from prunecli.own_code import PREFIX
from prunecli.recipe.loader import TEMPLATE, KeyPath, parse_value, parse_yaml
from prunecli.recipe.resolve import Plan, outside, resolve
from prunecli.recipe.schema import STAGES, Recipe

_SECRET = re.compile(r"(?i)(password|passwd|secret|(^|auth_|access_|api_|hf_)token|api_?key|access_?key)$")
_CREDENTIALS = re.compile(r"://[^/\s]*:[^/\s]*@")
_NOTHING = object()


def recipe_text(data: Mapping[str, Any], head: str = "") -> str:
    """YAML that `load_yaml` reads as `data`: strings that look like something else are quoted."""
    body = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return head + body


def value_text(value: Any) -> str:
    """A value on one line as `parse_value` reads it, for the right-hand side of --set KEY=VALUE."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def written_recipe(plan: Plan, path: Path, command: str) -> str:
    """A plan as the text of a recipe that gives the same plan: what was typed or differs from defaults.

    Values that came from variables of the environment are written as these variables.

    Args:
        plan: The plan.
        path: The file that the text is for.
        command: What was typed, for a comment.

    Raises:
        RecipeError: A value looks like a secret, or would not be read as it is.
    """
    data = _kept(dataclasses.asdict(plan.recipe), _defaults(plan.recipe), (), plan)
    data = {"version": plan.recipe.version, **data}
    _refuse_secrets(data, ())
    text = recipe_text(data, _head(plan, data, path, command))
    read = resolve(parse_yaml(text, "recipe"), confined=False).recipe
    if read != plan.recipe:
        raise RecipeError(f"{path}: {_difference(plan.recipe, read)}, so it would be another plan; give it by a flag")
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2, or a variable of the environment, would turn into something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _is_plain(text) else '"')


def _is_plain(text: str) -> bool:
    try:
        return bool(parse_value(text, "") == text)
    except RecipeError:
        return False


_Dumper.add_representer(str, _represent_text)


def _defaults(recipe: Recipe) -> dict[str, Any]:
    """What every value is that a recipe with the same kinds of stages does not name."""
    stages = []
    for stage in recipe.stages:
        own = dataclasses.asdict(STAGES[stage.stage]())
        if stage.stage == "prune":
            own["params"] = dataclasses.asdict(get_method(stage.method).params_class())
        stages.append(own)
    return {**dataclasses.asdict(Recipe()), "stages": stages}


def _kept(value: Any, default: Any, path: KeyPath, plan: Plan) -> Any:
    """The parts of a plan that were written or are no defaults; `_NOTHING` if there are none."""
    if isinstance(value, dict) and (value or not path):
        inner = {
            key: kept
            for key, item in value.items()
            if (kept := _kept(item, _of(default, key), (*path, key), plan)) is not _NOTHING
        }
        return inner if inner or not path else _NOTHING
    if path == ("stages",):
        return [_kept_stage(stage, default[index], (*path, index), plan) for index, stage in enumerate(value)]
    if path not in plan.origins and value == default:
        return _NOTHING
    return _with_templates(value, path, plan)


def _with_templates(value: Any, path: KeyPath, plan: Plan) -> Any:
    """A value with variables of the environment where they were written."""
    if (*path, TEMPLATE) in plan.origins:
        return _Template(plan.origins[(*path, TEMPLATE)])
    if isinstance(value, dict):
        return {key: _with_templates(item, (*path, key), plan) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_templates(item, (*path, index), plan) for index, item in enumerate(value)]
    return value


def _kept_stage(stage: dict[str, Any], default: dict[str, Any], path: KeyPath, plan: Plan) -> dict[str, Any]:
    own = {"stage": stage["stage"]} | ({"method": stage["method"]} if "method" in stage else {})
    kept = _kept(stage, default, path, plan)
    return own if kept is _NOTHING else own | kept


def _of(default: Any, key: str) -> Any:
    return default.get(key, _NOTHING) if isinstance(default, dict) else _NOTHING


class _Template(str):
    """Text with variables of the environment, which stays as it is."""


def _represent_template(dumper: yaml.SafeDumper, text: _Template) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text))


_Dumper.add_representer(_Template, _represent_template)


def _refuse_secrets(value: Any, path: KeyPath) -> None:
    for inner, item in _leaves(value, path):
        if isinstance(item, _Template) or not isinstance(item, str):
            continue
        if _CREDENTIALS.search(item) or _SECRET.search(str(inner[-1])):
            name = ".".join(map(str, inner))
            raise RecipeError(
                f"{name} looks like a secret, which is never written to a recipe: put it into an environment variable "
                f"and give --set '{name}=${{env:NAME}}'"
            )


def _head(plan: Plan, data: dict[str, Any], path: Path, command: str) -> str:
    """Comments: what was typed, and how to run it."""
    words = ["prune", "run", str(path)]
    named = [value for value in (plan.recipe.model.ref, plan.recipe.data.name) if value and value.startswith(PREFIX)]
    for value in named:
        words += ["--allow-code", value.removeprefix(PREFIX).partition(":")[0]]
    for key, value in outside(data, {inner: "recipe" for inner, _ in _leaves(data, ())}, path.parent):
        words += ["--set", f"{'.'.join(map(str, key))}={value}"]
    lines = [
        f"Written by {command}",
        f"Run it with {shlex.join(words)}",
        "Relative paths are read from the folder in which prune is started.",
    ]
    return "".join(f"# {' '.join(line.splitlines())}\n" for line in lines)


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value


def _difference(plan: Recipe, read: Recipe) -> str:
    """The first value that is not read as it was."""
    rows = {key: value for key, value, _ in Plan(read, {}).rows()}
    for key, value, _ in Plan(plan, {}).rows():
        if rows.get(key, _NOTHING) != value:
            return f"{key} is {value!r} and would be read as {rows.get(key)!r}"
    return "it is not read as it was"
