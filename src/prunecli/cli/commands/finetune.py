"""`prune finetune`."""

from __future__ import annotations

from typing import Any

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, checkpoint_path, prepare, show_training, stage_options
from prunecli.recipe.schema import FinetuneStage

OPTIONS = [*options_of(FinetuneStage, ("stages", "STAGE"), skip=("stage",)), *stage_options("checkpoint")]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Trains and saves."""
    space = prepare(output, model, {"stage": "finetune"}, OPTIONS, values)
    if space is None:
        return
    from prunecli.pipeline.stages import train_stage

    out = checkpoint_path(space, values, "finetuned")
    stage = space.recipe.stages[0]
    assert isinstance(stage, FinetuneStage)
    show_training(output, train_stage(space, stage, out))


def command() -> Any:
    """The Typer command."""
    summary = "Recover accuracy after pruning, optionally learning from the dense parent (--teacher parent)."
    return make_command("finetune", with_output(run, OPTIONS), summary)
