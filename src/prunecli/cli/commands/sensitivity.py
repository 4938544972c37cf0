"""`prune sensitivity`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.cli.declared import Command
from prunecli.cli.options import option, options_of, shared_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, check_writable, prepare
from prunecli.errors import RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.recipe.schema import PruneStage

if TYPE_CHECKING:
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.sensitivity import SensitivityOutcome

_RATIOS = "0.1,0.3,0.5,0.7"
_MAX_DROP = 1.0
_IMAGES = 1000
_OPTIONS = [
    option("ratios", str, "Shares of a layer's channels to try, with commas.", default=_RATIOS),
    option(
        "max_drop",
        float,
        "Most that the score may worsen over all layers: points of top-1, bits or perplexity.",
        default=_MAX_DROP,
    ),
    option("images", int, "Validation images to judge on; the test split is not touched.", default=_IMAGES),
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
    """Measures, shows and draws the curves, and writes the recipe."""
    ratios = _ratios(values["ratios"] or _RATIOS)
    max_drop = _MAX_DROP if values["max_drop"] is None else values["max_drop"]
    images = _IMAGES if values["images"] is None else values["images"]
    if max_drop <= 0:
        raise RecipeError(f"--max-drop has to be greater than 0 (got {max_drop:g})")
    if images < 1:
        raise RecipeError(f"--images has to be at least 1 (got {images})")
    stem = model.replace(":", "-") if ":" in model and not Path(model).exists() else Path(model).stem
    out = Path(values["out"] or f"{stem}-sensitivity.yaml")
    picture = Path(values["plot"] or out.with_suffix(".png"))
    _check_files(out, picture, bool(values["force"]))
    space = prepare(output, model, {"stage": "prune"}, _OPTIONS, values | {"out": None})
    if space is None:
        return
    from prunecli.studies.sensitivity import sensitivity_stage, write_plot, write_recipe

    stage = space.recipe.stages[0]
    assert isinstance(stage, PruneStage)
    outcome = sensitivity_stage(space, stage, ratios, max_drop, images)
    if output.mode != "json":
        _show(output, outcome, out, picture)
    write_plot(outcome, max_drop, _title(space, stage, outcome), picture, replace=space.force)
    output.note(f"wrote {picture}")
    write_recipe(space, stage, outcome, out)
    if output.mode == "json":  # only now: an error would have been the one document of this command
        _show(output, outcome, out, picture)
    output.note(f"wrote {out}; next: prune prune {out}{_named_weights(space, out)}")


def _named_weights(space: Workspace, recipe: Path) -> str:
    """Options for weights outside the recipe's folder, which a recipe itself may not name."""
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
        raise RecipeError(f"--ratios {text}: write numbers between 0 and 1 with commas, for instance {_RATIOS}")
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


def _show(output: Output, outcome: SensitivityOutcome, out: Path, picture: Path) -> None:
    output.document({"recipe": str(out), "plot": str(picture), **outcome.document()})
    for table in outcome.tables():
        output.table(table)


def command() -> Command:
    """The command."""
    summary = (
        "Prune every layer alone at several ratios, see what it costs, and write a recipe by layer name that keeps "
        "within a drop."
    )
    return Command("sensitivity", with_output(run, _OPTIONS), summary)
