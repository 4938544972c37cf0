"""`prune token`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, checkpoint_path, prepare, stage_options
from prunecli.methods.params import TokenParams
from prunecli.methods.spec import MethodSpec
from prunecli.recipe.schema import PruneStage

if TYPE_CHECKING:
    from prunecli.pipeline.tokens import TokenOutcome

OPTIONS = [
    *options_of(TokenParams, ("stages", "STAGE", "params")),
    *options_of(PruneStage, ("stages", "STAGE"), only=("latency_rounds",)),
    *stage_options("checkpoint"),
]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Leaves tokens out and compares."""
    space = prepare(output, model, {"stage": "prune", "method": "token"}, OPTIONS, values)
    if space is None:
        return
    from prunecli.pipeline.tokens import token_stage

    stage = space.recipe.stages[0]
    assert isinstance(stage, PruneStage)
    show_tokens(output, token_stage(space, stage, checkpoint_path(space, values, "token")))


def show_tokens(output: Output, outcome: TokenOutcome) -> None:
    """Unpruned, pruned and random beside each other."""
    from prunecli.engine.tasks import Accuracy
    from prunecli.measure.intervals import accuracy_interval, mean_recall_interval
    from prunecli.report.numbers import fixed
    from prunecli.report.tables import Table
    from prunecli.report.token_tables import COLUMNS, latency_row, per_block_text, ratio_row, score_row

    output.document(outcome.to_dict())
    unpruned, pruned = (per_block_text(counts) for counts in zip(*outcome.per_block, strict=True))
    rows: list[tuple[str, ...]] = [("tokens behind blocks", unpruned, pruned, pruned)]
    figures = [one.figures for one in outcome.variants if isinstance(one.figures, Accuracy)]
    if figures:
        for name, label in (("top1", "top-1"), ("top5", "top-5")):
            found = [getattr(one, name) for one in figures]
            bounds = [accuracy_interval(value, one.images) for value, one in zip(found, figures, strict=True)]
            rows.append(score_row(label, found, bounds))
        recalls = [mean_recall_interval(one.class_hits, one.class_images) for one in figures]
        rows.append(score_row("mean class recall", [one.mean_class_recall for one in figures], recalls))
        rows.append(("agreement", "", *(fixed(one.agreement, unit=" %") for one in outcome.variants[1:])))
        rows.append(("cosine of features", "", *(fixed(one.cosine, 4) for one in outcome.variants[1:])))
    rows.append(ratio_row("MACs", [one.macs.total for one in outcome.variants]))
    for batch, timing in outcome.timings.items():
        speedups = [
            (1 / ratio, 1 / high, 1 / low)
            for ratio, (low, high) in zip(timing.ratios[1:], timing.ratio_intervals[1:], strict=True)
        ]
        rows.append(latency_row(batch, [one.median for one in timing.timings], speedups))
        share = fixed(100 * speedups[0][0] / outcome.limit, 0, f" % of {outcome.limit:.2f}x")
        rows.append(("of the MACs limit", "", share, ""))
    rows.append(("alone or in a batch", "", f"differs by {outcome.batch_difference:.0e}", ""))
    output.table(Table(COLUMNS, rows))
    output.note(f"saved {outcome.path}")


def method_command(spec: MethodSpec) -> Any:
    """The Typer command."""
    epilog = f"Paper: {spec.paper}" if spec.paper else None
    return make_command(spec.name, with_output(run, OPTIONS), spec.summary, epilog)
