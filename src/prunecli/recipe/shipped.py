"""The recipes that come with the package: where they are, what they are called, copies of them. Nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prunecli.errors import RecipeError, meant, nearest, unknown

if TYPE_CHECKING:
    import yaml

SUFFIXES = (".yaml", ".yml")
_PACKAGE = Path(__file__).resolve().parents[1]
_WIDTH = 120


class ShippedRecipe(NamedTuple):
    """What a list says of a recipe."""

    name: str
    description: str
    model: str
    data: str
    stages: tuple[str, ...]


def shipped_folder() -> Path:
    """The folder of recipes: inside an installed package, or at the top of the checkout that this code lies in.

    Raises:
        RecipeError: It is in neither.
    """
    for folder in (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise RecipeError(f"{_PACKAGE / 'recipes'}: the recipes of this package are missing; install it again")


def shipped_names() -> list[str]:
    """Names of all recipes, sorted; no file is read."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def shipped_path(name: str) -> Path:
    """The file of a recipe by its name.

    Raises:
        RecipeError: There is none of that name; the message suggests the nearest.
    """
    names = shipped_names()
    if name not in names:
        close = nearest(name, names)
        hint = meant(close) if close else "`prune recipe ls` lists them"
        raise RecipeError(f"no recipe is called {name!r}: {hint}")
    return shipped_folder() / f"{name}.yaml"


def shipped_sweeps() -> list[str]:
    """Names of all sweeps that come with the package, sorted; no file is read."""
    return sorted(path.stem for path in (shipped_folder() / "sweeps").glob("*.yaml"))


def shipped_sweep(name: str) -> Path:
    """The file of a sweep by its name.

    Raises:
        RecipeError: There is none of that name; the message suggests the nearest.
    """
    names = shipped_sweeps()
    if name not in names:
        raise RecipeError(f"{name}: no such file, and {unknown('sweep', name, names)}")
    return shipped_folder() / "sweeps" / f"{name}.yaml"


def located(recipe: Path, note: Callable[[str], object] = lambda text: None) -> Path:
    """The file that a command is given: one that exists, or else the shipped recipe of that name.

    Args:
        recipe: What was typed.
        note: Told if a file of nearly that name may be meant.

    Raises:
        RecipeError: There is neither.
    """
    if recipe.exists():
        return recipe
    if recipe.suffix in SUFFIXES:
        if recipe.stem in shipped_names():
            raise RecipeError(f"{recipe}: no such file; the recipe that comes with prune has no path: {recipe.stem}")
        return recipe  # reading it says what is wrong
    similar = next((file for end in SUFFIXES if (file := recipe.with_name(recipe.name + end)).is_file()), None)
    if recipe.parent == Path() and recipe.name in shipped_names():
        if similar is not None:
            note(f"{recipe}: the recipe that comes with prune, not the file {similar}; name that with its ending")
        return shipped_path(recipe.name)
    if similar is not None:
        raise RecipeError(f"{recipe}: no such file, but there is {similar}; name it with its ending")
    if recipe.parent != Path():
        raise RecipeError(f"{recipe}: no such file; a recipe ends in .yaml, and `prune recipe ls` lists those of prune")
    try:
        return shipped_path(recipe.name)
    except RecipeError as error:
        raise RecipeError(f"{recipe}: no such file, and {error}") from error


def shipped_recipes() -> list[ShippedRecipe]:
    """What every recipe is about, in the order of their names."""
    from prunecli.recipe.resolve import load_plan

    listed = []
    for name in shipped_names():
        recipe = load_plan(shipped_folder() / f"{name}.yaml").recipe
        stages = tuple(stage.stage for stage in recipe.stages)
        listed.append(ShippedRecipe(name, recipe.description, recipe.model.ref or "-", recipe.data.name or "-", stages))
    return listed


def standalone(path: Path) -> str:
    """The text of a recipe that works without the recipes that it extends, and says the same.

    Scalars stay as they are written, variables of the environment among them. Comments inside are lost where the recipe
    extends another; those at its top stay.
    """
    import yaml

    text = path.read_text(encoding="utf-8")
    merged, extends = _merged(path)
    if not extends:
        return text
    lines = text.splitlines(keepends=True)
    top = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    body = yaml.serialize(merged, Dumper=yaml.SafeDumper, width=_WIDTH, allow_unicode=True)
    return "".join(lines[:top]) + body


def _merged(path: Path) -> tuple[yaml.MappingNode, bool]:
    """The nodes of a recipe and of what it extends in one, and whether it extends anything."""
    import yaml

    own = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    assert isinstance(own, yaml.MappingNode)
    base = next((value.value for key, value in own.value if key.value == "extends"), None)
    own.value = [(key, value) for key, value in own.value if key.value != "extends"]
    if base is None:
        return own, False
    under, _ = _merged(path.parent / base)
    _merge(under, own)
    return under, True


def _merge(into: yaml.MappingNode, own: yaml.MappingNode) -> None:
    """As `resolve` merges: mappings key by key, anything else is replaced."""
    import yaml

    keys = {key.value: place for place, (key, _) in enumerate(into.value)}
    for key, value in own.value:
        place = keys.get(key.value)
        if place is None:
            into.value.append((key, value))
        elif isinstance(value, yaml.MappingNode) and isinstance(into.value[place][1], yaml.MappingNode):
            _merge(into.value[place][1], value)
        else:
            into.value[place] = (key, value)
