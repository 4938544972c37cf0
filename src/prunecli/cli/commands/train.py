"""`prune train` and `prune finetune`: the same stage with other defaults."""

from __future__ import annotations

from typing import Any

from prunecli.cli.declared import Command
from prunecli.cli.next_steps import after_finetuning, after_training
from prunecli.cli.options import TRACKER, options_of, track_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, checkpoint_path, nothing_left, prepare, show_outcome, stage_options
from prunecli.recipe.schema import FinetuneStage, TrainStage


def command() -> Command:
    """`prune train`."""
    summary = "Train a network, or continue training one. Without --data a new network learns scikit-learn's digits."
    return _training_command("train", "trained", TrainStage, summary)


def finetune_command() -> Command:
    """`prune finetune`."""
    summary = "Recover accuracy after pruning, learning from labels and from the dense parent."
    return _training_command("finetune", "finetuned", FinetuneStage, summary)


def _training_command(verb: str, suffix: str, kind: type[TrainStage], summary: str) -> Command:
    options = [
        *options_of(kind, ("stages", "STAGE"), skip=("stage",)),
        *track_options(),
        *stage_options("checkpoint", resumable=True),
    ]

    def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
        space = prepare(output, model, {"stage": verb}, options, values)
        if space is None:
            return
        from prunecli.pipeline.stages.train import train_stage

        out = checkpoint_path(space, values, suffix)
        if nothing_left(output, space, out):
            return
        stage = space.recipe.stages[0]
        assert isinstance(stage, kind)
        outcome = train_stage(space, stage, out)
        show_outcome(output, outcome)
        (after_training if verb == "train" else after_finetuning)(output, space, outcome.path)

    return Command(verb, with_output(run, options), summary, optional={"--track": TRACKER})
