"""`prune inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunecli.cli.lazy import make_command
from prunecli.cli.options import model_kwargs_options, option, options_of, plan_for_stage, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable
from prunecli.errors import ModelError, RecipeError
from prunecli.recipe.fields import fields_of
from prunecli.recipe.schema import DataSection, ModelSection

if TYPE_CHECKING:
    from prunecli.pipeline.activity import Firing
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.inspection import LayerInfo

_DOCS = {field.name: field.doc for cls in (ModelSection, DataSection) for field in fields_of(cls)}
IMAGES = 256
PICTURES = (".png", ".svg", ".pdf")
OPTIONS = [
    option("arch", str, _DOCS["ref"] + " For foreign weights; without it they are recognised.", path=("model", "ref")),
    *model_kwargs_options(),
    option("image_size", str, _DOCS["image_size"], path=("data", "image_size")),
    option("data", str, "For firing rates, on training images: " + _DOCS["name"], path=("data", "name")),
    option("data_root", str, _DOCS["root"], path=("data", "root")),
    option("images", int, "Images to measure firing rates on.", default=IMAGES),
    option("plot", str, "Draw firing rates by layer (.png, .svg, .pdf).", "--plot"),
    option("force", bool, "Replace a picture that exists.", "--force"),
    option("layers", bool, "List every layer and silent channel, not only those that changed.", "--layers"),
    option("manifest", bool, "Print the manifest as JSON and nothing else.", "--manifest"),
    option("verify", bool, "Only compare every tensor of a checkpoint with its recorded hash.", "--verify"),
    *options_of(ModelSection, ("model",), only=("allow_nonfinite",)),
]

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A weights file or a reference such as timm:resnet50.")
]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Shows what a file holds."""
    if values["verify"]:
        _verify(output, model)
        return
    _check_picture(values)
    from prunecli.pipeline.workspace import Workspace
    from prunecli.studies.inspection import layers_of

    plan = plan_for_stage(model, {"stage": "eval"}, OPTIONS, values)
    space = Workspace(plan.recipe, output)
    loaded = space.model()
    if values["manifest"]:
        if output.mode == "json":
            output.document(loaded.manifest.model_dump(mode="json", by_alias=True))
        output.text(loaded.manifest.model_dump_json(by_alias=True, indent=2))
        return
    with space.inputs.running():
        layers = layers_of(loaded, space.inputs.example())
    firing = _firing(output, space, values)
    output.document(
        {
            "model": loaded.manifest.architecture.model_dump(mode="json"),
            "path": str(loaded.path) if loaded.path else None,
            "sha256": loaded.sha256,
            "input_shape": list(space.inputs.shape()),
            "layers": [vars(layer) for layer in layers],
            "firing": _as_document(firing),
            "manifest": loaded.manifest.model_dump(mode="json", by_alias=True),
        }
    )
    _show(output, space, layers, bool(values["layers"]))
    if firing is not None:
        _show_firing(output, firing, bool(values["layers"]))
    elif space.activity.firing_hint:
        output.note(space.activity.firing_hint)
    if values["plot"]:
        output.note(f"wrote {values['plot']}")


def _firing(output: Output, space: Workspace, values: dict[str, Any]) -> Firing | None:
    """Firing rates, where they are asked for, and the picture of them."""
    plot, images = values["plot"], IMAGES if values["images"] is None else values["images"]
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


def _show_firing(output: Output, firing: Firing, everything: bool) -> None:
    from prunecli.measure.energy import FORMULA
    from prunecli.report.energy_tables import NEURON_COLUMNS, energy_rows, neuron_rows
    from prunecli.report.table import Table

    output.note(f"firing rates over {firing.images} images of {firing.data}, {firing.timesteps} time steps each:")
    output.table(Table(NEURON_COLUMNS, neuron_rows(firing.neurons, everything=everything), numeric=(1, 2, 3)))
    output.table(Table(("figure", "value"), energy_rows(firing.metrics, FORMULA)))


def _as_document(firing: Firing | None) -> dict[str, Any] | None:
    if firing is None:
        return None
    return {
        **vars(firing),
        "neurons": [neuron.model_dump(mode="json") for neuron in firing.neurons],
        "metrics": firing.metrics.model_dump(mode="json", exclude_none=True),
    }


def _check_picture(values: dict[str, Any]) -> None:
    plot = values["plot"]
    if plot is None:
        return
    if Path(plot).suffix not in PICTURES:
        raise RecipeError(f"--plot {plot}: a picture ends in {', '.join(PICTURES)}")
    check_writable(Path(plot), bool(values["force"]))


def _verify(output: Output, model: str) -> None:
    from prunecli.report.numbers import count
    from prunecli.report.table import Table
    from prunecli.studies.inspection import verify_file

    verified = verify_file(Path(model).expanduser())
    output.document(
        {
            "path": model,
            "header": "ok" if verified.sealed else "without a hash",
            "tensors": [vars(tensor) for tensor in verified.tensors],
            "error": verified.problem,
        }
    )
    rows = [(tensor.name, count(tensor.size), "ok" if tensor.intact else "damaged") for tensor in verified.tensors]
    output.table(Table(("tensor", "bytes", "state"), rows, numeric=(1,)))
    if verified.problem is not None:
        output.complain(verified.problem)
        raise typer.Exit(ModelError.exit_code)
    header = "and its header are" if verified.sealed else "are (its header has no hash; an earlier version wrote it)"
    output.note(f"{model}: all {len(rows)} tensors {header} as they were written")


def _show(output: Output, space: Workspace, layers: list[LayerInfo], everything: bool) -> None:
    from prunecli.measure.counts import count_macs
    from prunecli.report.numbers import count, macs
    from prunecli.report.table import Table

    loaded = space.model()
    params, zeros = sum(layer.params for layer in layers), sum(layer.zeros for layer in layers)
    changed = [layer for layer in layers if layer.shape != layer.dense_shape]
    counted = count_macs(loaded.model, space.inputs.example())
    steps = space.activity.time_steps
    rows = [
        ("architecture", loaded.manifest.architecture.ref),
        ("input", "x".join(map(str, space.inputs.shape()))),
        ("parameters", count(params)),
        ("zeros", f"{100 * zeros / max(params, 1):.2f} %"),
        ("MACs", macs(counted.total, counted.uncounted)),
        *([("time steps, in MACs too", str(steps))] if steps else []),
        *([("not counted in MACs", ", ".join(counted.uncounted))] if counted.uncounted else []),
        ("layers changed", f"{len(changed)} of {len(layers)}"),
        ("sha256", loaded.sha256 or "-"),
    ]
    output.table(Table(("figure", "value"), rows))
    for number, step in enumerate(loaded.manifest.history, start=1):
        data = f"{step.data.images} images of {step.data.name}" if step.data else "no data"
        settings = step.settings if step.stage == "prune" else {}
        method = _method(settings)
        rows = [("made with", step.command), ("seed", str(step.seed)), ("data", data)]
        rows += [("parent", step.parent)] if step.parent else []
        rows += [(key.replace("_", " "), _figure(value)) for key, value in step.figures.items()]
        output.table(Table((f"{number}. {step.stage}", method), rows))
    chosen = layers if everything else changed
    if chosen:
        body = [
            (
                layer.name,
                layer.kind,
                "x".join(map(str, layer.dense_shape)),
                "x".join(map(str, layer.shape)),
                count(layer.params),
                f"{100 * layer.zeros / max(layer.params, 1):.1f} %",
                count(layer.macs),
            )
            for layer in chosen
        ]
        output.table(Table(("layer", "kind", "dense", "now", "parameters", "zeros", "MACs"), body, numeric=(4, 5, 6)))


def _method(settings: Mapping[str, Any]) -> str:
    """A method with the parameters that are not its defaults (all of them, if it is not installed here)."""
    from dataclasses import asdict

    from prunecli.methods.registry import all_methods

    name, params = settings.get("method"), settings.get("params")
    if not isinstance(name, str) or not isinstance(params, dict):
        return ""
    spec = all_methods().get(name)
    defaults = asdict(spec.params()) if spec is not None else {}
    chosen = [f"{k}={v}" for k, v in params.items() if k not in defaults or v != defaults[k]]
    return " ".join([name, *chosen])


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def command() -> Any:
    """The Typer command."""
    return make_command("inspect", with_output(run, OPTIONS), "Show a network's layers, widths, sparsity and history.")
