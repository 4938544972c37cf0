"""`prune prune`, and one verb for each method."""

from __future__ import annotations

import inspect
from typing import Any

from prunecli.cli.declared import Command
from prunecli.cli.next_steps import after_pruning
from prunecli.cli.options import OptionSpec, options_of, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import ModelArgument, checkpoint_path, nothing_left, prepare, show_pruning, stage_options
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import family_of, get_method
from prunecli.methods.spec import FAMILIES, Family, MethodSpec
from prunecli.recipe.schema import PruneStage
from prunecli.registry import imported


def command() -> Command:
    """`prune prune MODEL --method NAME`: the parameters are those that structural methods share."""
    options = _options(StructuralParams, FAMILIES["structural"], "method")
    return Command("prune", with_output(_runner(None, options), options), "Prune a network with any method.")


def method_command(name: str) -> Command:
    """`prune NAME MODEL`."""
    spec = get_method(name)
    if spec.command:
        own: Command = imported(spec.command)(spec)
        return own
    options = _options(spec.params_class, FAMILIES[spec.family])
    epilog = f"Paper: {spec.paper}" if spec.paper else None
    return Command(name, with_output(_runner(spec, options), options), spec.summary, epilog, spec.option_aliases)


def _options(params: type[Any], family: Family, *more: str) -> list[OptionSpec]:
    own = inspect.get_annotations(params)  # before those that methods of the family share
    return [
        *sorted(options_of(params, ("stages", "STAGE", "params")), key=lambda option: option.name not in own),
        *options_of(PruneStage, ("stages", "STAGE"), only=(*more, *family.settings)),
        *stage_options("checkpoint", resumable=family.resumable),
    ]


def _runner(spec: MethodSpec | None, options: list[OptionSpec]) -> Any:
    def run(output: Output, model: ModelArgument, values: dict[str, Any]) -> None:
        stage = {"stage": "prune"} if spec is None else {"stage": "prune", "method": spec.name}
        space = prepare(output, model, stage, options, values)
        if space is None:
            return
        with output.phase("load libraries"):
            from prunecli.pipeline.stages.prune import prune_stage

        chosen = space.recipe.stages[0]
        assert isinstance(chosen, PruneStage)
        out = checkpoint_path(space, values, chosen.method)
        if not (family_of(chosen.method).resumable and nothing_left(output, space, out)):
            outcome = prune_stage(space, chosen, out)
            show_pruning(output, outcome)
            after_pruning(output, space, outcome.path, finetunes=family_of(chosen.method).name != "runtime")

    return run
