"""`prune run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.joining import joined, place, too_many
from prunecli.cli.launching import launch
from prunecli.cli.next_steps import after_run
from prunecli.cli.options import TRACKER, option, options_of, overrides_from, track_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import (
    RESUME_OPTIONS,
    SAVE_RECIPE,
    recipe_saver,
    reproducible_command,
    resume_command,
    resume_or_force,
    show_plan,
)
from prunecli.errors import GateFailed, RecipeError
from prunecli.recipe.schema import Recipe

if TYPE_CHECKING:
    from prunecli.recipe.resolve import Plan

OPTIONS = [
    option("out", str, "Folder for everything the run writes; default: the next free runs/NAME.", "-o", "--out"),
    option("force", bool, "Write into a folder that exists.", "--force"),
    SAVE_RECIPE,
    *RESUME_OPTIONS,
    option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
    option("data_root", str, "Folder that holds named data sets.", path=("data", "root")),
    *options_of(Recipe, (), only=("seed", "device", "threads")),
    *track_options(),
    option("nproc", int, "Processes on this machine that share the work; see docs/distributed.md.", "--nproc"),
    option("max_restarts", int, "How often they are started again from the newest state, if one fails.", default=0),
    option("set_values", list[str], "Set any recipe value: KEY=VALUE, for instance stages.0.epochs=2.", "--set"),
]

RecipeArgument = Annotated[Path, Argument("RECIPE", "A YAML recipe, or the name of a shipped one: quickstart.")]


def run(output: Output, recipe: RecipeArgument, values: dict[str, Any]) -> None:
    """Runs a recipe."""
    from prunecli.recipe.resolve import load_plan
    from prunecli.recipe.shipped import located

    plan = load_plan(located(recipe, output.note), overrides_from(OPTIONS, values, 0))
    resume, force = resume_or_force(values)
    save = recipe_saver(output, plan, values)
    if values["dry_run"]:
        show_plan(output, plan)
        save()
        return
    here, processes = place(), values["nproc"]
    if here is None and processes is not None and processes != 1:
        from prunecli.pipeline.run import check_plan

        check_plan(plan)
        problem = too_many(processes, plan.recipe.device)
        if problem is not None:
            raise RecipeError(f"--nproc: {problem}")
        folder = _folder(recipe, values["out"], force, resume)
        words = sys.argv[1:] if values["out"] is not None else [*sys.argv[1:], "--out", str(folder)]
        launch(words, processes, values["max_restarts"] or 0, _restart(words, folder))
        return
    if here is not None and here.restarts:  # by torchrun itself
        if values["out"] is None:
            raise RecipeError("a restart cannot know which folder this run has; name it with --out")
        resume, force = True, False
    with joined(processes, plan.recipe.device, lambda: _text(plan), plan.recipe.threads) as here:
        warning = too_many(here.local_size, plan.recipe.device) if here is not None else None
        if warning is not None:
            output.warn(warning)
        failure = _run(output, recipe, values, plan, save, resume=resume, force=force)
    if failure is not None:
        raise failure


def _run(
    output: Output,
    recipe: Path,
    values: dict[str, Any],
    plan: Plan,
    save: Callable[[], None],
    *,
    resume: bool,
    force: bool,
) -> GateFailed | None:
    """Runs a plan in this process, one of several or alone, and shows what came of it."""
    from prunecli import ranks
    from prunecli.pipeline.run import run_recipe
    from prunecli.pipeline.workspace import Workspace
    from prunecli.report.table import Table
    from prunecli.report.tables import comparison_table

    folder = ranks.by_first(lambda: _folder(recipe, values["out"], force, resume))
    words = sys.argv[1:] if values["out"] is not None else [*sys.argv[1:], "--out", str(folder)]
    space = Workspace(
        plan.recipe, output, reproducible_command(sys.argv[1:]), resume_command(words), resume=resume, force=force
    )
    ranks.by_first(save)
    outcome = run_recipe(plan, folder, space)
    output.document(
        {
            "folder": str(outcome.folder),
            "stages": [{"stage": r.stage, "path": str(r.path), "figures": dict(r.figures)} for r in outcome.stages],
            "comparison": outcome.comparison.model_dump(mode="json", by_alias=True) if outcome.comparison else None,
        }
    )
    if outcome.comparison is not None:
        output.table(comparison_table(outcome.comparison))
        for note in outcome.comparison.notes:
            output.note(f"note: {note}")
    output.table(Table(("stage", "wrote"), [(record.stage, str(record.path)) for record in outcome.stages]))
    after_run(output, outcome)
    return outcome.failure


def _restart(words: list[str], folder: Path) -> Callable[[], list[str]]:
    """What to start processes with that were killed: to continue what they began, if they began anything."""
    from prunecli.pipeline.run_folder import RUN_NAME

    def written() -> int | None:
        path = folder / RUN_NAME
        return path.stat().st_mtime_ns if path.is_file() else None

    before = written()
    bare = [word for word in words if word not in ("--force", "--resume")]
    return lambda: words if written() == before else [*bare, "--resume"]


def _text(plan: Plan) -> str:
    from prunecli.recipe.writing import recipe_text

    return recipe_text(plan.to_dict())


def _folder(recipe: Path, given: str | None, force: bool, resume: bool) -> Path:
    if given is not None:
        folder = Path(given)
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"{folder}: is a file; --out takes the name of a folder")
        if folder.is_dir() and any(folder.iterdir()) and not (force or resume):
            raise RecipeError(
                f"{folder}: exists and is not empty; add --resume to continue the run there, --force to write into "
                "it, or choose another"
            )
        return folder
    folder = Path("runs") / recipe.stem
    number, last = 1, folder
    while folder.exists():
        number += 1
        last, folder = folder, Path("runs") / f"{recipe.stem}-{number}"
    return last if resume else folder


def command() -> Command:
    """The command."""
    summary = "Run all stages of a recipe, one after the other."
    return Command("run", with_output(run, OPTIONS), summary, optional={"--track": TRACKER})
