"""Cells of a sweep: each is a plan, called by a hash of everything that decides what it comes to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.errors import ModelError, RecipeError
from prunecli.methods.registry import get_method
from prunecli.models.whereabouts import whereabouts
from prunecli.own_code import PREFIX
from prunecli.pipeline.resumption import NOT_IDENTITY
from prunecli.pipeline.run import check_plan, plan_text
from prunecli.recipe.axes import Setting, plan_of
from prunecli.recipe.loader import KeyPath, parse_yaml, placed
from prunecli.recipe.resolve import Override, Plan, resolve
from prunecli.recipe.schema import PruneStage, Recipe
from prunecli.recipe.sweep_file import Sweep
from prunecli.report.sweep import label_of

_NAME_DIGITS = 16
_NOT_RESULTS = ("version", "description", "save_every", "keep_states", "track")
"""What a plan says that changes nothing about what comes out."""
_FILES = (("model", "weights"), ("model", "example"), ("data", "name"))
_DATA_FILES = ("class_names", "classes", "templates", "tokenizer")


@dataclass(frozen=True)
class Shared:
    """The first stages of cells, which are the same in several and run once.

    Attributes:
        name: A hash of everything that decides what they come to.
        plan: These stages alone.
    """

    name: str
    plan: Plan


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    Attributes:
        name: A hash of everything that decides what it comes to: two cells of one name are the same.
        values: By the names of the axes.
        plan: What it runs.
        shared: Beginnings that it has in common with others, the shortest first; each starts from the one before.
    """

    name: str
    values: Mapping[str, Any]
    plan: Plan
    shared: tuple[Shared, ...] = field(default=())

    @property
    def label(self) -> str:
        """Its values on one line."""
        return label_of(self.values)


class CellMaker:
    """Makes cells of values.

    Args:
        sweep: The sweep.
        settings: Its axes with their options.
        overrides: Values of --set.
    """

    def __init__(self, sweep: Sweep, settings: Sequence[Setting], overrides: Sequence[Override] = ()) -> None:
        self._sweep, self._settings, self._overrides = sweep, settings, overrides
        self._known: dict[str, Cell] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The axes."""
        return tuple(setting.axis.name for setting in self._settings)

    def __call__(self, values: Sequence[Any]) -> Cell:
        """The cell with one value for each axis.

        Raises:
            PruneError: Its plan is wrong, cannot be written as a recipe, or names a network or data set that there is
                not.
        """
        key = json.dumps(list(values), sort_keys=True)
        if key not in self._known:
            self._known[key] = self._made(values)
        return self._known[key]

    def _made(self, values: Sequence[Any]) -> Cell:
        plan = plan_of(self._sweep, self._settings, values, self._overrides)
        named = dict(zip(self.names, values, strict=True))
        check_plan(plan)
        _check_networks(plan)
        # A null that takes the place of a default is all that a plan does not say as a recipe.
        doubtful = None in values or not self._known
        if doubtful and resolve(parse_yaml(plan_text(plan), "plan"), confined=False).recipe != plan.recipe:
            empty = next(
                (setting.axis for setting, value in zip(self._settings, values, strict=True) if value is None), None
            )
            where = f"{empty.origin}: axis {empty.name!r}: " if empty is not None else f"{self._sweep.path}: "
            raise RecipeError(f"{where}null cannot take the place of a default in a recipe; leave it out")
        return Cell(content_name(plan.recipe), named, plan, tuple(self._beginnings(plan)))

    def _beginnings(self, plan: Plan) -> Iterator[Shared]:
        """What comes before each stage that an axis changes."""
        if _depends_on_what_follows(plan.recipe):
            return
        for length in sorted({setting.stage for setting in self._settings if setting.stage}):
            recipe = dataclasses.replace(plan.recipe, stages=plan.recipe.stages[:length], track=())
            yield Shared(content_name(recipe), Plan(recipe, plan.origins))


def _check_networks(plan: Plan) -> None:
    """Checks that the files of networks that a plan starts from are there, before anything is run.

    Raises:
        ModelError: One is missing.
    """
    model = plan.recipe.model
    named: list[tuple[KeyPath, str | None, str | None]] = [
        (("model", "weights" if model.weights is not None else "ref"), model.weights, model.ref)
    ]
    for index, stage in enumerate(plan.recipe.stages):
        teacher = getattr(stage, "teacher", None)
        if isinstance(teacher, str) and teacher.endswith(WEIGHT_SUFFIXES) and not teacher.startswith(PREFIX):
            named.append((("stages", index, "teacher"), teacher, None))
    for path, weights, ref in named:
        found = whereabouts(weights, ref)
        if found is not None and found.missing:
            raise ModelError(placed(found.missing, plan.origins.get(path)))


def _depends_on_what_follows(recipe: Recipe) -> bool:
    """Whether the network is recognised with an eye to a later stage, so that first stages alone are another run."""
    methods = [stage.method for stage in recipe.stages if isinstance(stage, PruneStage)]
    return recipe.model.weights is not None and any(get_method(name).source is not None for name in methods)


def content_name(recipe: Recipe) -> str:
    """A hash of a plan and of the files that it names: networks, single files of data, names of classes.

    What a folder of data holds is not read for it.
    """
    plain = Plan(recipe, {}).to_dict()
    for name in _NOT_RESULTS:
        plain.pop(name, None)
    for name in NOT_IDENTITY:
        plain["data"].pop(name, None)
    for path in _named_files(plain):
        value = _at(plain, path)
        digest = _digest(value) if isinstance(value, str) else None
        if digest is not None:
            _put(plain, path, digest)
    text = json.dumps(plain, sort_keys=True, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


def _named_files(plain: Mapping[str, Any]) -> Iterator[KeyPath]:
    yield from _FILES
    yield ("model", "ref")
    yield from (("data", name) for name in _DATA_FILES)
    for index, _ in enumerate(plain.get("stages", ())):
        yield ("stages", index, "teacher")
        yield ("stages", index, "params", "rewind")


def _at(plain: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            plain = plain[part]
        except (KeyError, TypeError, IndexError):
            return None
    return plain


def _put(plain: Any, path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        plain = plain[part]
    plain[path[-1]] = value


def _digest(value: str) -> str | None:
    """The hash of a file that a value names, with what stands before it; None if it names none."""
    source, colon, rest = value.partition(":")
    for kind, name in (("", value), (source, rest if colon else "")):
        path = Path(name).expanduser()
        if name and path.is_file():
            return f"{kind}:sha256:{_file_sha256(str(path.resolve()), *_stamp(path))}"
        if name and kind == "hf" and path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file())
            hashes = [[file.name, _file_sha256(str(file.resolve()), *_stamp(file))] for file in files]
            return f"{kind}:sha256:{hashlib.sha256(json.dumps(hashes).encode()).hexdigest()}"
    return None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _file_sha256(path: str, size: int, changed: int) -> str:
    """The hash of a file, read once as long as its size and time stay."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
