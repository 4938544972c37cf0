"""Shared by the stage verbs: options, dry runs, output files, results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.declared import Argument
from prunecli.cli.options import OptionSpec, option, options_of, plan_for_stage, shared_options
from prunecli.cli.output import Output
from prunecli.errors import ModelError, RecipeError
from prunecli.recipe.schema import Recipe

if TYPE_CHECKING:
    from prunecli.pipeline.workspace import Workspace
    from prunecli.recipe.resolve import Plan
    from prunecli.report.results import StageOutcome

ModelArgument = Annotated[str, Argument("MODEL", "A weights file, a reference such as timm:resnet50, or a recipe.")]


RESUME_OPTIONS = [
    option("resume", bool, "Continue where an earlier run was stopped; start if there is none.", "--resume"),
    *options_of(Recipe, (), only=("save_every", "keep_states")),
]
SAVE_RECIPE = option("save_recipe", str, "Write what is typed here as a recipe, too: a .yaml file for prune run.")


def stage_options(result: str, *, resumable: bool = False) -> list[OptionSpec]:
    """Options of every stage verb; `result` says what -o names, a `resumable` stage keeps states."""
    return [
        option("out", str, f"File to write the {result} to.", "-o", "--out"),
        option("force", bool, "Replace a file that exists.", "--force"),
        SAVE_RECIPE,
        *(RESUME_OPTIONS if resumable else []),
        option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
        *shared_options(),
    ]


def prepare(
    output: Output, model: str, stage: dict[str, Any], specs: Sequence[OptionSpec], values: dict[str, Any]
) -> Workspace | None:
    """Resolves the plan and opens a workspace; None when it was a dry run."""
    return opened(output, plan_for_stage(model, stage, specs, values), values)


def opened(output: Output, plan: Plan, values: Mapping[str, Any]) -> Workspace | None:
    """Opens a workspace for a plan; None when it was a dry run."""
    resume, force = resume_or_force(values)
    save = recipe_saver(output, plan, values)
    if values.get("dry_run"):
        show_plan(output, plan)
        save()
        return None
    if values.get("out") is not None:
        check_writable(Path(values["out"]), force or resume)
    with output.phase("load libraries"):
        from prunecli.pipeline.workspace import Workspace

    command = reproducible_command(sys.argv[1:])
    space = Workspace(plan.recipe, output, command, resume_command(sys.argv[1:]), resume, force)
    save()
    return space


def recipe_saver(output: Output, plan: Plan, values: Mapping[str, Any]) -> Callable[[], None]:
    """What writes --save-recipe, once everything that is checked before any work has been.

    Raises:
        RecipeError: The file exists with other content, or the plan cannot be a recipe.
        ModelError: The network's file does not exist.
    """
    if values.get("save_recipe") is None:
        return lambda: None
    from prunecli.checkpoint.durable import write_text_atomically
    from prunecli.models.whereabouts import whereabouts
    from prunecli.recipe.writing import written_recipe

    path = Path(values["save_recipe"])
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--save-recipe {path}: recipes are YAML; name it {path.with_suffix('.yaml')}")
    found = whereabouts(plan.recipe.model.weights, plan.recipe.model.ref)
    if found is not None and found.missing and not values.get("dry_run"):
        raise ModelError(found.missing)
    text = written_recipe(plan, path, reproducible_command(sys.argv[1:]))
    if not (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text):
        check_writable(path, bool(values.get("force")))

    def save() -> None:
        write_text_atomically(path, text)
        output.note(f"wrote {path}")

    return save


def show_plan(output: Output, plan: Plan, *, network: bool = True) -> None:
    """Every value and its origin, and if `network`, where the network would come from.

    Raises:
        ModelError: It would come from a file that does not exist; the plan is shown all the same.
    """
    from prunecli.models.whereabouts import whereabouts
    from prunecli.recipe.origins import origin_of
    from prunecli.report.table import Table

    rows, section = [_with_folder(row, plan) for row in plan.rows()], plan.recipe.model
    found = whereabouts(section.weights, section.ref, pretrained=section.pretrained) if network else None
    if found is not None:
        named = ("model", "weights") if section.weights is not None else ("model", "ref")
        rows.insert(0, ("MODEL", found.text, origin_of(named, plan.origins)))
    output.document([{"key": key, "value": value, "origin": origin} for key, value, origin in rows])
    output.table(Table(("key", "value", "from"), [(key, _shown(value), origin) for key, value, origin in rows]))
    if found is not None and found.missing:
        raise ModelError(found.missing)


def _with_folder(row: tuple[str, Any, str], plan: Plan) -> tuple[str, Any, str]:
    """The same with the folder of data sets that a variable of the environment names."""
    from prunecli.data.catalog import ROOT_VARIABLE

    folder = os.environ.get(ROOT_VARIABLE)
    read_there = plan.recipe.data.name is not None and ":" not in plan.recipe.data.name
    if row[0] != "data.root" or row[1] is not None or not folder or not read_there:
        return row
    return row[0], folder, ROOT_VARIABLE


def check_writable(path: Path, force: bool) -> None:
    """Refuses to replace a file unasked, before any work is done.

    Raises:
        RecipeError: The file exists, or the path is a directory.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a directory; -o takes the name of a file")
    if path.exists() and not force:
        raise RecipeError(f"{path}: exists; add --force to replace it, or choose another name")
    from prunecli.checkpoint.durable import check_place

    check_place(path)


def checkpoint_path(space: Workspace, values: dict[str, Any], suffix: str) -> Path:
    """What -o says, else the model's name and what was done to it, in this folder.

    Raises:
        RecipeError: The name does not end in .safetensors, or the file exists.
    """
    if values["out"] is not None:
        path = Path(values["out"])
        if path.suffix != ".safetensors":
            raise RecipeError(f"-o {path}: checkpoints are safetensors; name it {path.with_suffix('.safetensors')}")
        return path
    weights = space.recipe.model.weights
    stem = Path(weights).stem if weights else (space.recipe.model.ref or "model").replace(":", "-")
    path = Path(f"{stem}-{suffix}.safetensors")
    check_writable(path, space.force or space.resume)
    return path


def nothing_left(output: Output, space: Workspace, path: Path) -> bool:
    """Whether --resume finds the stage finished: its file is there and no saved state."""
    from prunecli.pipeline.resumption import is_unfinished

    if not space.resume or not path.exists() or is_unfinished(path):
        return False
    output.note(f"{path}: finished already, nothing to resume")
    output.document({"checkpoint": str(path), "finished": True})
    return True


def resume_or_force(values: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether to resume an earlier run, and whether to replace existing files.

    Raises:
        RecipeError: Both are asked for.
    """
    resume, force = bool(values.get("resume")), bool(values.get("force"))
    if resume and force:
        raise RecipeError("--resume continues a run and --force starts it again; give one of them")
    return resume, force


def resume_command(argv: Sequence[str]) -> str:
    """The command line that resumes this one."""
    words = [word for word in argv if word not in ("--resume", "--force")]
    return shlex.join(["prune", *words, "--resume"])


_LEFT_OUT = ("--force", "--resume", "--json", "-q", "--quiet", "--dry-run", "--evaluate", "--no-evaluate")
_LEFT_OUT_WITH_VALUE = (
    "-o",
    "--out",
    "--output",
    "--save-every",
    "--keep-states",
    "--track",
    "--extract-attention",
    "--overlay",
    "--save-recipe",
    "--max-restarts",
    "--jobs",
    "--executor",
    "--address",
    "--evaluation-images",
)
_OPTIONAL = ("--track",)
"""Those of them whose value may be left out before another option."""


def reproducible_command(argv: Sequence[str]) -> str:
    """The command line without the options that only say where output goes and how the run is kept safe."""
    kept: list[str] = []
    awaiting = ""
    for word in argv:
        if awaiting and not (awaiting in _OPTIONAL and word.startswith("-")):
            awaiting = ""
            continue
        awaiting = word if word in _LEFT_OUT_WITH_VALUE else ""
        beginnings = ("-o", *(f"{flag}=" for flag in _LEFT_OUT_WITH_VALUE[1:]))
        if not awaiting and word not in _LEFT_OUT and not word.startswith(beginnings):
            kept.append(word)
    return shlex.join(["prune", *kept])


def show_outcome(output: Output, outcome: StageOutcome) -> None:
    """Prints the result of a stage."""
    output.document(outcome.document())
    for table in outcome.tables():
        output.table(table)


def show_pruning(output: Output, outcome: StageOutcome) -> None:
    """Prints the result of a prune stage and where it was saved."""
    show_outcome(output, outcome)
    output.note(f"saved {outcome.path}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
