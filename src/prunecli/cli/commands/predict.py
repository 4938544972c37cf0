"""`prune predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import model_kwargs_options, option, options_of, plan_for_stage, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument
from prunecli.errors import RecipeError
from prunecli.recipe.fields import fields_of
from prunecli.recipe.schema import DataSection, ModelSection, Recipe

_DOCS = {field.name: field.doc for cls in (ModelSection, DataSection) for field in fields_of(cls)}
_TOP, _SCORE = 5, 0.5
_BESIDE = "parent"
_OPTIONS = [
    option("top", int, "How many of the likeliest classes to show.", "--top", default=_TOP),
    option("score", float, "Least score of a box, from 0 to 1.", "--score", default=_SCORE),
    option(
        "classes",
        str,
        "Names of the network's classes, in its order: a file with one on each line, or a JSON list; of a network that "
        "compares images with texts, the texts.",
    ),
    option("data", str, "Take names of classes from this data set: " + _DOCS["name"], path=("data", "name")),
    option("data_root", str, _DOCS["root"], path=("data", "root")),
    option(
        "beside",
        str,
        "Ask this network, too: a weights file or a reference; alone, at the end or before another option: the dense "
        "one that MODEL was pruned from.",
        "--beside",
    ),
    option("out", str, "Folder to draw pictures into.", "-o", "--out"),
    option("force", bool, "Replace pictures that exist.", "--force"),
    option("arch", str, _DOCS["ref"] + " For foreign weights; without it they are recognised.", path=("model", "ref")),
    *options_of(
        ModelSection,
        ("model",),
        only=("pretrained", "num_classes", "weights_key", "strip_prefix", "allow_nonfinite", "example_shape"),
    ),
    *model_kwargs_options(),
    *options_of(DataSection, ("data",), only=("image_size", "templates", "batch_size", "workers")),
    *options_of(Recipe, (), only=("seed", "device", "threads")),
    option("set_values", list[str], "Set any recipe value: KEY=VALUE, for instance data.workers=2.", "--set"),
]

_ImagesArgument = Annotated[
    list[Path], Argument("IMAGES...", "Image files, and folders of images, with their sub-folders.")
]


def run(output: Output, model: ModelArgument, images: _ImagesArgument, values: dict[str, Any]) -> None:
    """Shows what a network says about images."""
    top, score = values["top"], values["score"]
    if top is not None and top < 1:
        raise RecipeError(f"--top has to be at least 1 (got {top})")
    if score is not None and not 0 <= score <= 1:
        raise RecipeError(f"--score has to be between 0 and 1 (got {score:g})")
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.prediction import PredictionRequest, predict

    plan = plan_for_stage(model, {"stage": "eval"}, _OPTIONS, values)
    space = Workspace(plan.recipe, output, force=bool(values["force"]))
    out = Path(values["out"]) if values["out"] else None
    paths = [path.expanduser() for path in images]
    outcome = predict(space, PredictionRequest(paths, top, score, values["classes"], out, values["beside"]))
    output.document(outcome.document())
    output.table(outcome.table())
    for path, reason in outcome.skipped.items():
        output.warn(f"{path}: left out, not a readable image ({reason})")
    for note in (*outcome.notes, outcome.agreement()):
        if note is not None:
            output.note(note)
    if out is not None:
        output.note(f"drew {len(outcome.rows)} pictures in {out}")


def command() -> Command:
    """The command."""
    summary = "Show what a network says about your own images: classes, masks or boxes."
    return Command("predict", with_output(run, _OPTIONS), summary, optional={"--beside": _BESIDE})
