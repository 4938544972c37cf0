"""`prune inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.commands.inspect_contents import CONTENTS_OPTIONS, show_difference, show_tree
from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import model_kwargs_options, option, options_of, plan_for_stage, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable
from prunecli.errors import ModelError, RecipeError
from prunecli.recipe.fields import fields_of
from prunecli.recipe.schema import DataSection, ModelSection

if TYPE_CHECKING:
    from prunecli.checkpoint.manifest import Manifest
    from prunecli.pipeline.activity import Firing
    from prunecli.pipeline.workspace import Workspace

_DOCS = {field.name: field.doc for cls in (ModelSection, DataSection) for field in fields_of(cls)}
_IMAGES = 256
_RECIPES = (".yaml", ".yml")
_OF_NETWORKS = ("arch", "model_kwargs", "weights_key", "strip_prefix")
"""Options that change, or are refused for, the network of a checkpoint."""
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
    *CONTENTS_OPTIONS,
    option("manifest", bool, "Print the manifest as JSON and nothing else.", "--manifest"),
    option("verify", bool, "Only compare every tensor of a checkpoint with its recorded hash.", "--verify"),
    *options_of(ModelSection, ("model",), only=("weights_key", "strip_prefix", "allow_nonfinite")),
]

_ModelArgument = Annotated[
    str, Argument("MODEL", "A weights file, a report of `prune eval`, or a reference such as timm:resnet50.")
]


def run(output: Output, model: _ModelArgument, values: dict[str, Any]) -> None:
    """Shows what a file holds."""
    if values["verify"]:
        _verify(output, model)
        return
    _check_values(values)
    path = Path(model).expanduser()
    if values["diff"] is not None:
        show_difference(output, Path(values["diff"]).expanduser(), path, values)
        return
    if values["tree"] or values["zeros"] or values["depth"] is not None:
        show_tree(output, path, values)
        return
    from prunecli.report.schema import is_report

    if is_report(path):
        _show_report(output, path, values)
        return
    manifest = _recorded_manifest(path, values) if values["manifest"] else None
    if manifest is not None:
        _show_manifest(output, manifest)
        return
    from prunecli.models.recognition import UnfittingWeights
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.inspection import inspect_network, tables_of_firing

    plan = plan_for_stage(model, {"stage": "eval"}, _OPTIONS, values)
    space = Workspace(plan.recipe, output)
    try:
        loaded = space.model()
    except UnfittingWeights as error:
        if path.suffix in _RECIPES or any(values[name] for name in (*_OF_NETWORKS, "manifest")):
            raise
        show_tree(output, path, values)
        output.note(f"only what the file holds is shown: {error}")
        return
    if values["manifest"]:
        _show_manifest(output, loaded.manifest)
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


def _show_report(output: Output, path: Path, values: dict[str, Any]) -> None:
    """What `prune eval` showed when it wrote the report."""
    from prunecli.report.schema import read_report
    from prunecli.report.tables import report_tables

    given = [f"--{spec.name.replace('_', '-')}" for spec in _OPTIONS if values[spec.name] not in (None, [])]
    if given:
        raise RecipeError(f"{path}: is a report, not a network; leave {', '.join(given)} out")
    report = read_report(path)
    output.document(report.model_dump(mode="json", by_alias=True, exclude_none=True))
    for table in report_tables(report):
        output.table(table)


def _recorded_manifest(path: Path, values: dict[str, Any]) -> Manifest | None:
    """The manifest in a checkpoint's header, where it is all that there is to know; None: load the network."""
    if not path.is_file() or path.suffix in _RECIPES or any(values[name] for name in _OF_NETWORKS):
        return None
    from prunecli.checkpoint.header import read_manifest

    manifest = read_manifest(path)
    # Without a shape of inputs the network says how they are normalised.
    complete = manifest is not None and manifest.architecture.ref and manifest.architecture.input_shape
    return manifest if complete else None


def _show_manifest(output: Output, manifest: Manifest) -> None:
    if output.mode == "json":
        output.document(manifest.model_dump(mode="json", by_alias=True))
    output.text(manifest.model_dump_json(by_alias=True, indent=2))


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
