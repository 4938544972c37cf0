"""`prune inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import model_kwargs_options, option, options_of, plan_for_stage, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable
from prunecli.errors import ModelError, RecipeError
from prunecli.recipe.fields import fields_of
from prunecli.recipe.schema import DataSection, ModelSection

if TYPE_CHECKING:
    from prunecli.pipeline.activity import Firing
    from prunecli.pipeline.workspace import Workspace

_DOCS = {field.name: field.doc for cls in (ModelSection, DataSection) for field in fields_of(cls)}
_IMAGES = 256
_PICTURES = (".png", ".svg", ".pdf")
_OPTIONS = [
    option("arch", str, _DOCS["ref"] + " For foreign weights; without it they are recognised.", path=("model", "ref")),
    *model_kwargs_options(),
    option("image_size", str, _DOCS["image_size"], path=("data", "image_size")),
    option("data", str, "For firing rates, on training images: " + _DOCS["name"], path=("data", "name")),
    option("data_root", str, _DOCS["root"], path=("data", "root")),
    option("images", int, "Images to measure firing rates on.", default=_IMAGES),
    option("plot", str, "Draw firing rates by layer (.png, .svg, .pdf).", "--plot"),
    option("force", bool, "Replace a picture that exists.", "--force"),
    option("layers", bool, "List every layer and silent channel, not only those that changed.", "--layers"),
    option("modules", int, "List MACs by module down to this depth, next to fvcore's count.", "--modules"),
    option("manifest", bool, "Print the manifest as JSON and nothing else.", "--manifest"),
    option("verify", bool, "Only compare every tensor of a checkpoint with its recorded hash.", "--verify"),
    *options_of(ModelSection, ("model",), only=("weights_key", "strip_prefix", "allow_nonfinite")),
]

_ModelArgument = Annotated[str, Argument("MODEL", "A weights file or a reference such as timm:resnet50.")]


def run(output: Output, model: _ModelArgument, values: dict[str, Any]) -> None:
    """Shows what a file holds."""
    if values["verify"]:
        _verify(output, model)
        return
    _check_values(values)
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.inspection import inspect_network, tables_of_firing

    plan = plan_for_stage(model, {"stage": "eval"}, _OPTIONS, values)
    space = Workspace(plan.recipe, output)
    if values["manifest"]:
        manifest = space.model().manifest
        if output.mode == "json":
            output.document(manifest.model_dump(mode="json", by_alias=True))
        output.text(manifest.model_dump_json(by_alias=True, indent=2))
        return
    inspection = inspect_network(space, values["modules"])
    firing = _firing(space, values)
    output.document(inspection.document(firing))
    everything = bool(values["layers"])
    for table in inspection.tables(everything=everything):
        output.table(table)
    if (note := inspection.note()) is not None:
        output.note(note)
    if firing is not None:
        steps = f"{firing.timesteps} time steps each"
        output.note(f"firing rates over {firing.images} images of {firing.data}, {steps}:")
        for table in tables_of_firing(firing, everything=everything):
            output.table(table)
    elif space.activity.firing_hint:
        output.note(space.activity.firing_hint)
    if values["plot"]:
        output.note(f"wrote {values['plot']}")


def _firing(space: Workspace, values: dict[str, Any]) -> Firing | None:
    """Firing rates, if a data set or a plot is requested, and their plot."""
    plot, images = values["plot"], _IMAGES if values["images"] is None else values["images"]
    if images < 1:
        raise RecipeError(f"--images has to be at least 1 (got {images})")
    if plot is None and values["data"] is None:
        return None
    firing = space.activity.firing(images, required=plot is not None)
    if firing is not None and plot is not None:
        from prunecli.checkpoint.durable import write_atomically
        from prunecli.report.plots import firing_plot

        title = f"{space.model().name}: {firing.images} images of {firing.data}, {firing.timesteps} time steps"
        picture = firing_plot(firing.neurons, title, Path(plot).suffix[1:])
        write_atomically(Path(plot), lambda temporary: temporary.write_bytes(picture), replace=bool(values["force"]))
    return firing


def _check_values(values: dict[str, Any]) -> None:
    if values["modules"] is not None and values["modules"] < 1:
        raise RecipeError(f"--modules has to be at least 1 (got {values['modules']})")
    plot = values["plot"]
    if plot is None:
        return
    if Path(plot).suffix not in _PICTURES:
        raise RecipeError(f"--plot {plot}: a picture ends in {', '.join(_PICTURES)}")
    check_writable(Path(plot), bool(values["force"]))


def _verify(output: Output, model: str) -> None:
    from prunecli.studies.inspection import verify_file

    verified = verify_file(Path(model).expanduser())
    output.document({"path": model, **verified.document()})
    output.table(verified.table())
    if verified.problem is not None:
        output.complain(verified.problem)
        from typer import Exit

        raise Exit(ModelError.exit_code)
    header = "and its header are" if verified.sealed else "are (its header has no hash; an earlier version wrote it)"
    output.note(f"{model}: all {len(verified.tensors)} tensors {header} as they were written")


def command() -> Command:
    """The command."""
    return Command("inspect", with_output(run, _OPTIONS), "Show a network's layers, widths, sparsity and history.")
