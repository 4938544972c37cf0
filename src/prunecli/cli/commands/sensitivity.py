"""`prune sensitivity`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.cli.lazy import make_command
from prunecli.cli.options import option, options_of, shared_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, check_writable, prepare
from prunecli.errors import RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.recipe.schema import PruneStage

if TYPE_CHECKING:
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.sensitivity import SensitivityOutcome

RATIOS = "0.1,0.3,0.5,0.7"
MAX_DROP = 1.0
IMAGES = 1000
OPTIONS = [
    option("ratios", str, "Shares of a layer's channels to try, with commas.", default=RATIOS),
    option("max_drop", float, "Points of top-1 that the recipe may lose, all layers together.", default=MAX_DROP),
    option("images", int, "Validation images to judge on; the test split is not touched.", default=IMAGES),
    option("plot", str, "Picture to draw (.png, .svg, .pdf); default: the recipe's name with .png.", "--plot"),
    option("out", str, "Recipe to write; default: MODEL-sensitivity.yaml.", "-o", "--out"),
    option("force", bool, "Replace files that exist.", "--force"),
    option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
    *options_of(PruneStage, ("stages", "STAGE"), only=("method", "keep")),
    *options_of(StructuralParams, ("stages", "STAGE", "params"), only=("round_to", "max_ratio", "min_width")),
    *options_of(StructuralParams, ("stages", "STAGE", "params"), only=("prune_stem", "heads")),
    *options_of(PruneStage, ("stages", "STAGE"), only=("recalibrate", "compensate", "calibration_images")),
    *shared_options(),
]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Measures, shows, draws, and writes the recipe."""
    ratios = _ratios(values["ratios"] or RATIOS)
    max_drop = MAX_DROP if values["max_drop"] is None else values["max_drop"]
    images = IMAGES if values["images"] is None else values["images"]
    if max_drop <= 0:
        raise RecipeError(f"--max-drop has to be greater than 0 (got {max_drop:g})")
    if images < 1:
        raise RecipeError(f"--images has to be at least 1 (got {images})")
    stem = model.replace(":", "-") if ":" in model and not Path(model).exists() else Path(model).stem
    out = Path(values["out"] or f"{stem}-sensitivity.yaml")
    picture = Path(values["plot"] or out.with_suffix(".png"))
    _check_files(out, picture, bool(values["force"]))
    space = prepare(output, model, {"stage": "prune"}, OPTIONS, values | {"out": None})
    if space is None:
        return
    from prunecli.studies.sensitivity import sensitivity_stage, write_plot, write_recipe

    stage = space.recipe.stages[0]
    assert isinstance(stage, PruneStage)
    outcome = sensitivity_stage(space, stage, ratios, max_drop, images)
    if output.mode != "json":
        _show(output, outcome, ratios, out, picture)
    write_plot(outcome, max_drop, _title(space, stage, outcome), picture, replace=space.force)
    output.note(f"wrote {picture}")
    write_recipe(space, stage, outcome, out)
    if output.mode == "json":  # the one document of the command: an error would have been it
        _show(output, outcome, ratios, out, picture)
    output.note(f"wrote {out}; next: prune prune {out}{_named_weights(space, out)}")


def _named_weights(space: Workspace, recipe: Path) -> str:
    """What to add to a command where the recipe names weights that lie outside: a recipe alone may not."""
    from prunecli.checkpoint.confinement import stays_inside

    weights = space.recipe.model.weights
    if weights is None or stays_inside(weights, recipe.parent, Path()):
        return ""
    return f" --set model.weights={shlex.quote(weights)}"


def _ratios(text: str) -> list[float]:
    try:
        ratios = sorted({float(part) for part in text.split(",")})
    except ValueError:
        ratios = []
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise RecipeError(f"--ratios {text}: write numbers between 0 and 1 with commas, for instance {RATIOS}")
    return ratios


def _check_files(out: Path, picture: Path, force: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"-o {out}: recipes are YAML; name it {out.with_suffix('.yaml')}")
    if picture.suffix not in (".png", ".svg", ".pdf"):
        raise RecipeError(f"--plot {picture}: name it {picture.with_suffix('.png')}, or with .svg or .pdf")
    for path in (out, picture):
        check_writable(path, force)


def _title(space: Workspace, stage: PruneStage, outcome: SensitivityOutcome) -> str:
    name, data = Path(space.model().name).name, space.data().name
    return f"{name}, {stage.method}: each layer alone, {outcome.images} images of {data}"


def _show(output: Output, outcome: SensitivityOutcome, ratios: list[float], out: Path, picture: Path) -> None:
    from prunecli.report.numbers import fixed
    from prunecli.report.pruning_tables import left_alone_tables
    from prunecli.report.table import Table

    proposal = outcome.proposal
    output.document(
        {
            "recipe": str(out),
            "plot": str(picture),
            "images": outcome.images,
            "baseline_top1": outcome.baseline,
            "curves": [asdict(curve) for curve in outcome.curves],
            "left_out": outcome.left_out,
            "proposal": asdict(proposal),
        }
    )
    rows = [
        (
            curve.group,
            str(curve.channels),
            *(fixed(point.drop) for point in curve.points),
            fixed(100 * proposal.ratios[curve.group], 1, " %"),
        )
        for curve in outcome.curves
    ]
    columns = ("layer", "channels", *(f"{100 * ratio:g} %" for ratio in ratios), "recipe")
    title = "top-1 points lost with each layer alone at these ratios"
    output.table(Table(columns, rows, title=title, numeric=tuple(range(1, len(columns)))))
    together = [
        ("top-1 as it is", fixed(outcome.baseline, unit=" %")),
        ("top-1 with the recipe", fixed(proposal.accuracy, unit=" %")),
        ("points lost", fixed(proposal.drop)),
        ("validation images", str(outcome.images)),
    ]
    output.table(Table(("all layers together", "value"), together))
    for table in left_alone_tables(outcome.left_out):
        output.table(table)


def command() -> Any:
    """The Typer command."""
    summary = (
        "Prune every layer alone at several ratios, see what it costs, and write a recipe by layer name that keeps "
        "within a drop."
    )
    return make_command("sensitivity", with_output(run, OPTIONS), summary)
