"""`prune audit`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.cli.declared import Command
from prunecli.cli.options import option, options_of, plan_for_stage, shared_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import RESUME_OPTIONS, ModelArgument, check_writable, opened
from prunecli.errors import RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.recipe.schema import PruneStage

if TYPE_CHECKING:
    from prunecli.report.audit import Audit

_METHODS, _UNITS, _BATCHES = "fisher,taylor,obs,activation,l1", 64, 8
_PICTURES = ("ranks.png", "correlations.png", "agreement.png")
_OPTIONS = [
    option(
        "methods",
        str,
        "Methods to audit, with commas; l2 and random always are. A method's own options follow it, as in "
        "activation:statistic=std.",
        default=_METHODS,
    ),
    option("units", int, "Units that are removed one at a time, drawn from all layers.", default=_UNITS),
    option("batches", int, "Calibration batches for scores and removals.", default=_BATCHES),
    option("out", str, "Report to write (JSON); default: MODEL-audit.json.", "-o", "--out"),
    option("plots", str, "Folder to draw pictures into (PNG).", "--plots"),
    option("force", bool, "Replace files that exist.", "--force"),
    *RESUME_OPTIONS,
    option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
    *options_of(PruneStage, ("stages", "STAGE"), only=("keep",)),
    *options_of(
        StructuralParams,
        ("stages", "STAGE", "params"),
        only=("normalise", "prune_stem", "only", "heads", "outputs"),
    ),
    *shared_options(),
]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Ablates, scores, and says which method to use; of a sweep, by its cells."""
    from prunecli.report.sweep import is_sweep

    if is_sweep(Path(model)):
        _compare_cells(output, Path(model), values)
        return
    stem = model.replace(":", "-").replace("/", "-") if ":" in model and not Path(model).exists() else Path(model).stem
    out = Path(values["out"] or f"{stem}-audit.json")
    if out.suffix != ".json":
        raise RecipeError(f"-o {out}: reports are JSON; name it {out.with_suffix('.json')}")
    plan = plan_for_stage(model, {"stage": "prune"}, _OPTIONS, values)
    space = opened(output, plan, values | {"out": str(out)})
    if space is None:
        return
    from prunecli.pipeline.resumption import is_unfinished
    from prunecli.studies.audit import AuditSettings, finished_audit, run_audit, seconds_path
    from prunecli.studies.entrants import as_written

    folder = Path(values["plots"]) if values["plots"] is not None else None
    for path in (seconds_path(out), *(folder / name for name in _PICTURES if folder is not None)):
        check_writable(path, space.may_replace)
    stage = as_written(plan)
    settings = AuditSettings(
        values["methods"] or _METHODS,
        _UNITS if values["units"] is None else values["units"],
        _BATCHES if values["batches"] is None else values["batches"],
    )
    if space.resume and out.exists() and not is_unfinished(out):
        audit, seconds = finished_audit(space, settings, stage, out), {}
        output.note(f"{out}: finished already, nothing to resume")
    else:
        outcome = run_audit(space, settings, stage, out)
        audit, seconds = outcome.audit, outcome.seconds
        output.note(f"wrote {out}, and wall times to {seconds_path(out)}")
    if folder is not None:
        _draw(audit, folder)
        output.note(f"wrote {', '.join(str(folder / name) for name in _PICTURES)}")
    _show(output, audit, seconds)


def _compare_cells(output: Output, folder: Path, values: dict[str, Any]) -> None:
    """Says which method of a sweep is best.

    Raises:
        RecipeError: An option is given, which a sweep has no use for, or the sweep has too little to compare.
    """
    given = next((spec.name for spec in _OPTIONS if values.get(spec.name) not in (None, False, [])), None)
    if given is not None:
        raise RecipeError(f"--{given.replace('_', '-')}: {folder} is a sweep, whose cells are there; leave it out")
    from prunecli.studies.sweeping.methods_compared import compared_methods

    compared = compared_methods(folder)
    output.document(compared.document())
    for table in compared.tables():
        output.table(table)
    output.text("\n" + "\n".join(compared.verdict()))


def _draw(audit: Audit, folder: Path) -> None:
    from prunecli.checkpoint.durable import write_atomically
    from prunecli.report.audit_plots import audit_plots

    for name, picture in audit_plots(audit).items():
        write_atomically(folder / name, partial(Path.write_bytes, data=picture))


def _show(output: Output, audit: Audit, seconds: dict[str, float]) -> None:
    from prunecli.report.audit_tables import audit_tables

    output.document(audit.document() | {"seconds": seconds})
    for table in audit_tables(audit, seconds):
        output.table(table)
    output.text("\n" + "\n".join(audit.verdict))


def command() -> Command:
    """The command."""
    summary = "Find out which methods rank a network's units as removing them does, and which one to use."
    return Command("audit", with_output(run, _OPTIONS), summary)
