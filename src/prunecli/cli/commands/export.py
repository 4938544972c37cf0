"""`prune export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import option, plan_for_stage, shared_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import opened
from prunecli.errors import RecipeError
from prunecli.exporting.index import FORMATS, format_for

if TYPE_CHECKING:
    from prunecli.exporting.base import ExportOptions
    from prunecli.pipeline.workspace import Workspace

_TO = "Format: " + ", ".join(FORMATS.built_in) + ". Default: what the name of the output ends in; a folder is hf."
_OPTIONS = [
    option("out", str, "The file or folder to write: pruned.onnx, pruned.pt2, pruned.xml, folder.", "--out", "-o"),
    option("to", str, _TO),
    option("force", bool, "Replace what exists.", "--force"),
    option("batch", int, "Samples in a batch, always; without it any number."),
    option("dynamic_size", bool, "Let sizes of images, or lengths of texts, differ too.", "--dynamic-size"),
    option("int8", bool, "With onnx: write NAME.int8.onnx too, and measure what it costs.", "--int8"),
    option("images", int, "Training images that --int8 measures ranges on.", default=256),
    option("latency_rounds", int, "Paired timings beside PyTorch; 0: none.", default=30),
    option("push_to_hub", str, "Upload the files to this repository of the Hugging Face hub, USER/NAME."),
    option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
    *shared_options(),
]

_ModelArgument = Annotated[
    str, Argument("MODEL", "A checkpoint, for instance pruned.safetensors, or a reference such as timm:resnet50.")
]


def run(output: Output, model: _ModelArgument, values: dict[str, Any]) -> None:
    """Writes a network as other programs read it."""
    if values["out"] is None:
        raise RecipeError("export: name the file or folder to write with -o, for instance -o pruned.onnx")
    path = Path(values["out"]).expanduser()
    name = format_for(path, values["to"])
    _check(name, path, values)
    space = opened(output, plan_for_stage(model, {"stage": "eval"}, _OPTIONS, values), {**values, "out": None})
    if space is None:
        return
    _export(output, space, name, path, values)


def _check(name: str, path: Path, values: dict[str, Any]) -> None:
    """What is wrong is said before any work.

    Raises:
        RecipeError: An option does not go with the format, or something is where files are to go.
        ModelError: A package is missing.
    """
    for key, least in (("batch", 1), ("images", 1), ("latency_rounds", 0)):
        if values[key] is not None and values[key] < least:
            raise RecipeError(f"--{key.replace('_', '-')} has to be at least {least} (got {values[key]})")
    if values["latency_rounds"] == 1:
        raise RecipeError("--latency-rounds 1: a ratio needs at least 2, or 0 for none")
    if values["int8"] and name != "onnx":
        raise RecipeError(f"--int8 is for --to onnx, whose runtime has a quantizer, not for {name}")
    if values["images"] is not None and not values["int8"]:
        raise RecipeError("--images is for --int8")
    if values["batch"] is not None and values["dynamic_size"]:
        raise RecipeError("--batch fixes the inputs and --dynamic-size frees them; give one of them")
    kind = FORMATS.load(name)
    if path.suffix != kind.suffix and (kind.suffix or path.suffix in (".onnx", ".pt2", ".xml", ".pt", ".safetensors")):
        wanted = path.with_suffix(kind.suffix) if kind.suffix else path.with_suffix("")
        raise RecipeError(f"-o {path}: --to {name} writes {kind.suffix or 'a folder'}; name it {wanted}")
    graphs = ("batch", "dynamic_size")
    if not kind.label and any(values[key] for key in graphs):
        raise RecipeError(f"--batch and --dynamic-size are for graphs, and {name} has none; leave them out")
    kind.require()
    if values["int8"]:
        from prunecli.exporting.int8 import require

        require()
    if values["push_to_hub"] is not None:
        from prunecli.exporting import hub

        hub.require(values["push_to_hub"])
    from prunecli.exporting.staging import check_free, outputs

    check_free(outputs(path, kind.suffix, int8=bool(values["int8"]), described=kind.described), bool(values["force"]))


def _export(output: Output, space: Workspace, name: str, path: Path, values: dict[str, Any]) -> None:
    from prunecli.pipeline.export import export_network
    from prunecli.report.export import export_tables

    record, files = export_network(space, _options(name, path, values))
    loaded = space.model()
    document: dict[str, Any] = {"path": str(path), "model": loaded.name, "ref": loaded.manifest.architecture.ref}
    document |= record.model_dump(mode="json", by_alias=True)
    if name == "package":
        output.note(f"wrote {path}; it has no proof and no history, so keep {loaded.name}")
    else:
        for table in export_tables(record):
            output.table(table)
        output.note(f"wrote {', '.join(map(str, files))}")
    if values["push_to_hub"] is not None:
        from prunecli.exporting import hub

        document["pushed"] = hub.push(values["push_to_hub"], files, f"prune export --to {name}")
        output.note(f"uploaded to {document['pushed']}")
    output.document(document)


def _options(name: str, path: Path, values: dict[str, Any]) -> ExportOptions:
    from prunecli.exporting.base import ExportOptions

    defaults = {"calibration_images": values["images"], "rounds": values["latency_rounds"]}
    return ExportOptions(
        format=name,
        path=path,
        batch=values["batch"],
        dynamic_size=bool(values["dynamic_size"]),
        int8=bool(values["int8"]),
        force=bool(values["force"]),
        **{key: value for key, value in defaults.items() if value is not None},
    )


def command() -> Command:
    """The command."""
    summary = (
        "Write a network as other programs read it: a graph that ONNX Runtime, OpenVINO or torch runs, compared with "
        "PyTorch and timed beside it, or a folder or file of weights."
    )
    return Command("export", with_output(run, _OPTIONS), summary)
