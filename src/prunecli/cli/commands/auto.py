"""`prune auto`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunecli.cli.declared import Command
from prunecli.cli.next_steps import after_search
from prunecli.cli.options import option, options_of, overrides_from, shared_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import (
    RESUME_OPTIONS,
    ModelArgument,
    check_writable,
    checkpoint_path,
    nothing_left,
    reproducible_command,
    resume_command,
    resume_or_force,
    show_plan,
)
from prunecli.errors import GateFailed, RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.recipe.schema import FinetuneStage, PruneStage

if TYPE_CHECKING:
    from prunecli.recipe.resolve import Plan
    from prunecli.report.auto import Objective
    from prunecli.studies.auto import AutoSettings

_MAX_DROP, _BUDGET, _IMAGES, _CALIBRATION = 1.0, 30.0, 1000, 512
_Least = Literal["min"]
_Split = Literal["test", "validation"]
_OBJECTIVES: tuple[Objective, ...] = ("macs", "latency", "params")
_OPTIONS = [
    option("max_drop", float, "Most that the score may worsen: points of top-1, bits, perplexity.", default=_MAX_DROP),
    option("macs", _Least, "Find the network with the fewest multiply-accumulates; the default.", "--macs"),
    option("latency", _Least, "Find the network that is fastest, measured here for one sample.", "--latency"),
    option("params", _Least, "Find the network with the fewest parameters.", "--params"),
    option("budget", float, "Minutes, unless --trials is given; it ends in time.", default=_BUDGET),
    option("trials", int, "Networks to judge or finetune; equal numbers and seeds give equal networks on a CPU."),
    option(
        "methods",
        str,
        "Criteria to try, with commas; a criterion's own options follow it, as in activation:statistic=std. "
        "Default: those that suit the network and take little time.",
    ),
    option("split", _Split, "Samples that finetuned networks are judged on.", default="validation"),
    option("images", int, "Training samples, at most, that networks are judged on before finetuning.", default=_IMAGES),
    option(
        "calibration_images",
        int,
        "Other training samples, for criteria and repairs.",
        default=_CALIBRATION,
        path=("stages", 0, "calibration_images"),
    ),
    option(
        "out",
        str,
        "Checkpoint to write; recipe and report get its name; default: MODEL-auto.safetensors.",
        "-o",
        "--out",
    ),
    option("force", bool, "Replace files that exist.", "--force"),
    *RESUME_OPTIONS,
    option("dry_run", bool, "Print the plan and where each value comes from; do nothing.", "--dry-run"),
    *options_of(PruneStage, ("stages", 0), only=("keep", "compensate", "recalibrate")),
    *options_of(
        StructuralParams,
        ("stages", 0, "params"),
        only=("scope", "round_to", "max_ratio", "min_width", "prune_stem", "only", "heads", "outputs"),
    ),
    *options_of(FinetuneStage, ("stages", 1), skip=("stage",)),
    *shared_options(),
]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Searches, shows what was tried, and writes network, recipe and report."""
    settings = _settings(values)
    plan = _plan(model, values)
    resume, force = resume_or_force(values)
    if values["dry_run"]:
        show_plan(output, plan)
        return
    from prunecli.pipeline.workspace import Workspace
    from prunecli.report.auto_tables import auto_tables
    from prunecli.studies.auto import check_finished, run_auto
    from prunecli.studies.entrants import as_written

    command, again = reproducible_command(sys.argv[1:]), resume_command(sys.argv[1:])
    space = Workspace(plan.recipe, output, command, again, resume, force)
    out = checkpoint_path(space, values, "auto")
    for path in (out, out.with_suffix(".yaml"), out.with_suffix(".json")):
        check_writable(path, force or resume)
    if resume and out.exists():
        check_finished(out.with_suffix(".json"), settings)
    if nothing_left(output, space, out):
        return
    report = run_auto(space, settings, plan, as_written(plan), out)
    output.document(report.document())
    for table in auto_tables(report):
        output.table(table)
    if report.winner is None:
        raise GateFailed(report.why)
    if output.mode != "json":
        output.text(f"\n{report.why}")
    _warn_of_test(output, report.claims, settings)
    output.note(f"saved {out}, {out.with_suffix('.yaml')} and {out.with_suffix('.json')}")
    after_search(output, space, out)


def _settings(values: dict[str, Any]) -> AutoSettings:
    """What is looked for.

    Raises:
        RecipeError: Settings exclude each other or are out of bounds.
    """
    from prunecli.studies.auto import AutoSettings

    asked = [name for name in _OBJECTIVES if values[name] is not None]
    if len(asked) > 1:
        names = " and ".join(f"--{name}" for name in asked)
        raise RecipeError(f"{names}: one figure can be the smallest; give one of them")
    trials, budget = values["trials"], values["budget"]
    settings = AutoSettings(
        objective=asked[0] if asked else "macs",
        max_drop=_MAX_DROP if values["max_drop"] is None else values["max_drop"],
        methods=values["methods"],
        budget=_BUDGET if budget is None and trials is None else budget,
        trials=trials,
        split=values["split"] or "validation",
        images=_IMAGES if values["images"] is None else values["images"],
    )
    settings.check()
    return settings


def _plan(model: str, values: dict[str, Any]) -> Plan:
    """What is typed, as a recipe with a prune and a finetune stage.

    Raises:
        RecipeError: A value is wrong, or the network is named by a recipe.
    """
    from prunecli.recipe.loader import Document
    from prunecli.recipe.origins import COMMAND_LINE
    from prunecli.recipe.resolve import resolve

    if Path(model).suffix in (".yaml", ".yml"):
        raise RecipeError(f"{model}: is a recipe, and auto writes one: give a weights file or a reference")
    reference = ":" in model and not Path(model).exists()
    if reference and values.get("arch") is not None:
        raise RecipeError(f"--arch is for weights files; {model} already is an architecture")
    stages = [{"stage": "prune", "calibration_images": _CALIBRATION}, {"stage": "finetune"}]
    document = Document({"model": {"ref" if reference else "weights": model}, "stages": stages}, COMMAND_LINE)
    return resolve(document, overrides_from(_OPTIONS, values, 0))


def _warn_of_test(output: Output, claims: Any, settings: AutoSettings) -> None:
    """Says so where the network does not keep its promise on samples that it was not chosen on."""
    for claim in claims:
        if not claim.decided and claim.drop > settings.max_drop:
            sure = claim.interval is not None and claim.interval[0] > settings.max_drop
            reach = "and so is its whole 95 % interval" if sure else "within what chance does"
            output.warn(
                f"on the {claim.split} split the drop is {claim.drop:.2f}, more than {settings.max_drop:g}, {reach}"
            )


def command() -> Command:
    """The command."""
    summary = (
        "Find the smallest network whose score is within a drop: try criteria, layer shares, repairs and amounts, and "
        "finetune the few that remain."
    )
    optional = {f"--{name}": "min" for name in _OBJECTIVES}
    return Command("auto", with_output(run, _OPTIONS), summary, optional=optional)
