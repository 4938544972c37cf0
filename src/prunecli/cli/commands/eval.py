"""`prune eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, prepare, stage_options
from prunecli.recipe.schema import EvalStage

OPTIONS = [*options_of(EvalStage, ("stages", "STAGE"), skip=("stage", "report")), *stage_options("report (JSON)")]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Measures, shows, and writes the report where -o says."""
    space = prepare(output, model, {"stage": "eval"}, OPTIONS, values)
    if space is None:
        return
    from prunecli.pipeline.stages import eval_stage, required, unmet
    from prunecli.report.tables import energy_table, neuron_table, report_table

    stage = space.recipe.stages[0]
    assert isinstance(stage, EvalStage)
    required(stage)  # a wrong condition is noticed before any work
    report = eval_stage(space, stage, Path(values["out"]) if values["out"] else None)
    output.document(report.model_dump(mode="json", by_alias=True, exclude_none=True))
    for table in (report_table(report), neuron_table(report), energy_table(report)):
        if table is not None:
            output.table(table)
    if values["out"]:
        output.note(f"wrote {values['out']}")
    failure = unmet(stage, report)
    if failure is not None:
        raise failure


def command() -> Any:
    """The Typer command."""
    return make_command("eval", with_output(run, OPTIONS), "Measure a network on the test images and write a report.")
