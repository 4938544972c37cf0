"""`prune run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import option, options_of, overrides_from, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import reproducible_command, show_plan
from prunecli.errors import RecipeError
from prunecli.recipe.schema import Recipe

OPTIONS = [
    option("output", str, "Folder for everything the run writes; default: the next free runs/NAME.", "--output"),
    option("force", bool, "Write into a folder that exists.", "--force"),
    option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
    option("data_root", str, "Folder that holds named data sets.", path=("data", "root")),
    *options_of(Recipe, (), only=("seed", "device", "threads")),
    option("set_values", list[str], "Set any recipe value: KEY=VALUE, for instance stages.0.epochs=2.", "--set"),
]

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]


def run(output: Output, recipe: RecipeArgument, values: dict[str, Any]) -> None:
    """Runs a recipe."""
    from prunecli.recipe.resolve import load_plan

    plan = load_plan(recipe, overrides_from(OPTIONS, values, 0))
    if values["dry_run"]:
        show_plan(output, plan)
        return
    folder = _folder(recipe, values["output"], bool(values["force"]))
    from prunecli.pipeline.run import run_recipe
    from prunecli.report.tables import Table, comparison_table

    outcome = run_recipe(plan, folder, output, reproducible_command(sys.argv[1:]))
    output.document(
        {
            "folder": str(outcome.folder),
            "stages": [{"stage": r.stage, "path": str(r.path), "figures": dict(r.figures)} for r in outcome.stages],
            "comparison": outcome.comparison.model_dump(mode="json", by_alias=True) if outcome.comparison else None,
        }
    )
    if outcome.comparison is not None:
        output.table(comparison_table(outcome.comparison))
    output.table(Table(("stage", "wrote"), [(record.stage, str(record.path)) for record in outcome.stages]))
    if outcome.failure is not None:
        raise outcome.failure


def _folder(recipe: Path, given: str | None, force: bool) -> Path:
    if given is not None:
        folder = Path(given)
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"{folder}: is a file; --output takes a folder")
        if folder.is_dir() and any(folder.iterdir()) and not force:
            raise RecipeError(f"{folder}: exists and is not empty; add --force to write into it, or choose another")
        return folder
    folder = Path("runs") / recipe.stem
    number = 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{recipe.stem}-{number}"
    return folder


def command() -> Any:
    """The Typer command."""
    return make_command("run", with_output(run, OPTIONS), "Run all stages of a recipe, one after the other.")
