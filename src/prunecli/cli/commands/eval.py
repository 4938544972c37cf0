"""`prune eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecli.cli.declared import Command
from prunecli.cli.next_steps import after_measuring
from prunecli.cli.options import option, options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, check_writable, prepare, stage_options
from prunecli.errors import RecipeError
from prunecli.recipe.schema import EvalStage

OPTIONS = [
    *options_of(EvalStage, ("stages", "STAGE"), skip=("stage", "report")),
    option("clip_benchmark", str, "Write accuracies in the form that CLIP_benchmark's build reads, too."),
    *stage_options("report (JSON)"),
]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Measures, shows, and writes the report where -o says."""
    space = prepare(output, model, {"stage": "eval"}, OPTIONS, values)
    if space is None:
        return
    from prunecli.checkpoint.durable import write_text_atomically
    from prunecli.pipeline.stages.eval import eval_stage, required, unmet
    from prunecli.report.clip_benchmark import clip_benchmark_json
    from prunecli.report.tables import report_tables

    stage = space.recipe.stages[0]
    assert isinstance(stage, EvalStage)
    if values["clip_benchmark"]:
        check_writable(Path(values["clip_benchmark"]), space.force)
    required(stage)  # a wrong condition is noticed before any work
    if values["clip_benchmark"] and "accuracy" not in stage.measure:
        raise RecipeError("--clip-benchmark writes accuracies, and none is measured: add --measure accuracy")
    if values["clip_benchmark"] and space.model() and not space.data_name():
        raise RecipeError("--clip-benchmark writes accuracies, and none is measured: name a data set with --data")
    report = eval_stage(space, stage, Path(values["out"]) if values["out"] else None)
    for_clip_benchmark = clip_benchmark_json(report) if values["clip_benchmark"] else ""
    output.document(report.model_dump(mode="json", by_alias=True, exclude_none=True))
    for table in report_tables(report):
        output.table(table)
    if values["out"]:
        output.note(f"wrote {values['out']}")
    if values["clip_benchmark"]:
        path = Path(values["clip_benchmark"])
        write_text_atomically(path, for_clip_benchmark, replace=space.force)
        output.note(f"wrote {path}")
    after_measuring(output, space, model)
    failure = unmet(stage, report)
    if failure is not None:
        raise failure


def command() -> Command:
    """The command."""
    return Command("eval", with_output(run, OPTIONS), "Measure a network on the test images and write a report.")
