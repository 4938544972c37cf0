"""`prune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import model_kwargs_options, option, options_of, plan_for_stage, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable
from prunecli.errors import RecipeError
from prunecli.recipe.fields import fields_of
from prunecli.recipe.schema import ModelSection

_DOCS = {field.name: field.doc for field in fields_of(ModelSection)}
_OPTIONS = [
    option("out", str, "The file to write: FILE.pt for ultralytics.", "--out", "-o"),
    option("force", bool, "Replace a file that exists.", "--force"),
    option("arch", str, _DOCS["ref"] + " For foreign weights; without it they are recognised.", path=("model", "ref")),
    *model_kwargs_options(),
    *options_of(ModelSection, ("model",), only=("weights_key", "strip_prefix", "allow_nonfinite")),
]

_ModelArgument = Annotated[str, Argument("MODEL", "A checkpoint, for instance pruned.safetensors.")]


def run(output: Output, model: _ModelArgument, values: dict[str, Any]) -> None:
    """Writes a file of the network's own package."""
    if values["out"] is None:
        raise RecipeError("export: name the file to write with -o, for instance -o pruned.pt")
    path = Path(values["out"]).expanduser()
    check_writable(path, bool(values["force"]))
    from prunecli.models.exporting import export
    from prunecli.pipeline.workspace import Workspace

    loaded = Workspace(plan_for_stage(model, {"stage": "eval"}, _OPTIONS, values).recipe, output).model()
    export(loaded, path)
    output.document({"path": str(path), "model": loaded.name, "ref": loaded.manifest.architecture.ref})
    output.note(f"wrote {path}; it has no proof and no history, so keep {loaded.name}")


def command() -> Command:
    """The command."""
    return Command("export", with_output(run, _OPTIONS), "Write a network as a file of its own package.")
