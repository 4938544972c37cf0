"""`prune recipe ls|copy|check|show|schema|new`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from prunecli.cli.commands.recipe_new import deliver, new
from prunecli.cli.declared import Argument, Command, Group, Option, Verb
from prunecli.cli.next_steps import after_recipe
from prunecli.cli.options import option, overrides_from, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import show_plan
from prunecli.errors import PruneError, RecipeError

_SHOW_OPTIONS = [option("set_values", list[str], "Set a value first: KEY=VALUE.", "--set")]

RecipeArgument = Annotated[Path, Argument("RECIPE", "A YAML recipe, or the name of a shipped one.")]
_RecipesArgument = Annotated[list[Path], Argument("RECIPE...", "YAML recipes, or names of shipped ones.")]
_NameArgument = Annotated[str, Argument("NAME", "A shipped recipe; `prune recipe ls` lists them.")]


def ls(output: Output) -> None:
    """What each shipped recipe does, and which of them need nothing but time."""
    from prunecli.recipe.shipped import shipped_folder, shipped_recipes
    from prunecli.report.table import Table

    listed = shipped_recipes()
    output.document([{**recipe._asdict(), "path": str(shipped_folder() / f"{recipe.name}.yaml")} for recipe in listed])
    rows = [(recipe.name, recipe.description, recipe.model, recipe.data) for recipe in listed]
    output.table(Table(("name", "what it does", "model", "data"), rows))


def copy(
    output: Output,
    name: _NameArgument,
    out: Annotated[Path | None, Argument("[FILE]", "File to write; default: NAME.yaml in this folder.")] = None,
    force: Annotated[bool, Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Writes a shipped recipe to change; what it extends is written into it."""
    from prunecli.recipe.loader import parse_yaml
    from prunecli.recipe.shipped import shipped_path, standalone

    path = shipped_path(name.removesuffix(".yaml"))
    text = standalone(path)
    out = out or Path(path.name)
    deliver(output, text, parse_yaml(text, name).data, out, force=force)
    after_recipe(output, out)


def check(output: Output, recipes: _RecipesArgument) -> None:
    """Reads each recipe and says whether it can be run, and everything that is wrong with it.

    Raises:
        RecipeError: Something is.
    """
    from prunecli.recipe.shipped import located

    fine: list[str] = []
    mistakes: dict[str, list[str]] = {}
    for path in recipes:
        try:
            wrong = _mistakes(located(path, output.note))
        except PruneError as error:
            wrong = [str(error)]
        if wrong:
            mistakes[str(path)] = [text if str(path) in text else f"{path}: {text}" for text in wrong]
        else:
            fine.append(str(path))
            output.text(f"{path}: ok")
    output.document({"ok": fine, "mistakes": mistakes})
    texts = [text for wrong in mistakes.values() for text in wrong]
    if len(texts) == 1:
        raise RecipeError(texts[0])
    for text in texts:
        output.complain(text)
    if texts:
        files = f" in {len(mistakes)} recipes" if len(mistakes) > 1 else ""
        raise RecipeError(f"{len(texts)} mistakes{files}")


def _mistakes(path: Path) -> list[str]:
    """Everything that is wrong with a recipe."""
    from prunecli.pipeline.run import check_plan
    from prunecli.recipe.refusals import Refusals
    from prunecli.recipe.resolve import plan_and_mistakes

    plan, wrong = plan_and_mistakes(path)
    refusals = Refusals(keep=True)
    refusals.kept += wrong
    if plan is not None:
        check_plan(plan, refusals)
    return sorted((str(mistake) for mistake in refusals.kept), key=_position)


def _position(mistake: str) -> tuple[int, int]:
    """Line and column, so that mistakes come in the order of the file."""
    match = re.match(r".*?:(\d+):(\d+)", mistake)
    return (int(match[1]), int(match[2])) if match is not None else (0, 0)


def show(output: Output, recipe: RecipeArgument, values: dict[str, Any]) -> None:
    """Every value and where it comes from."""
    from prunecli.recipe.resolve import load_plan
    from prunecli.recipe.shipped import located

    show_plan(output, load_plan(located(recipe, output.note), overrides_from(_SHOW_OPTIONS, values, 0)), network=False)


def schema(
    output: Output,
    out: Annotated[Path | None, Option("-o", "--out", help="File to write it to.")] = None,
    force: Annotated[bool, Option("--force", help="Replace a file that exists.")] = False,
    sweep: Annotated[bool, Option("--sweep", help="That of the files of `prune sweep` instead.")] = False,
) -> None:
    """The JSON schema of recipes, or of sweeps."""
    import json

    from prunecli.recipe.json_schema import recipe_json_schema
    from prunecli.recipe.sweep_file import sweep_json_schema

    document = sweep_json_schema() if sweep else recipe_json_schema()
    deliver(output, json.dumps(document, indent=2) + "\n", document, out, force=force)


VERBS = {
    "ls": Verb(
        "List the recipes that come with prune.",
        "Commands",
        lambda: Command("ls", with_output(ls), "List the recipes that come with prune; `prune run NAME` runs one."),
    ),
    "copy": Verb(
        "Copy one of them, to change it.",
        "Commands",
        lambda: Command("copy", with_output(copy), "Copy a recipe that comes with prune, to change it."),
    ),
    "check": Verb(
        "Say whether recipes can be run.",
        "Commands",
        lambda: Command("check", with_output(check), "Read recipes and say whether they can be run."),
    ),
    "show": Verb(
        "Print every value and its origin.",
        "Commands",
        lambda: Command("show", with_output(show, _SHOW_OPTIONS), "Print every value of a recipe and its origin."),
    ),
    "schema": Verb(
        "Print the JSON schema, for editors.",
        "Commands",
        lambda: Command("schema", with_output(schema), "Print the JSON schema of recipes, for editors."),
    ),
    "new": Verb(
        "Write a recipe to start from.",
        "Commands",
        lambda: Command(
            "new", with_output(new), "Write a recipe to start from; on a terminal, without options, by asking."
        ),
    ),
}


def command() -> Group:
    """The group."""
    return Group("recipe", VERBS, "List, copy, check, show, describe or start recipes.")
