"""`prune train`."""

from __future__ import annotations

from typing import Any

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, checkpoint_path, prepare, show_training, stage_options
from prunecli.recipe.schema import TrainStage

OPTIONS = [*options_of(TrainStage, ("stages", "STAGE"), skip=("stage",)), *stage_options("checkpoint")]


def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
    """Trains and saves."""
    space = prepare(output, model, {"stage": "train"}, OPTIONS, values)
    if space is None:
        return
    from prunecli.pipeline.stages import train_stage

    out = checkpoint_path(space, values, "trained")
    stage = space.recipe.stages[0]
    assert isinstance(stage, TrainStage)
    show_training(output, train_stage(space, stage, out))


def command() -> Any:
    """The Typer command."""
    summary = "Train a network, or go on training one. Without --data a new network learns scikit-learn's digits."
    return make_command("train", with_output(run, OPTIONS), summary)
