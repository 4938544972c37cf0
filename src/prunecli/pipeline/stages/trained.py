"""Prune stages of methods that prune while the network trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.durable import crash_point
from prunecli.copying import copied
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.resources import resource_errors
from prunecli.errors import MethodError, RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import select
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.trained import PruningHook, Removal, TrainedContext, TrainedMethod, remove_kept
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.fit_progress import FitProgress
from prunecli.pipeline.pruning import continued_manifest
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.stages.structural import PruneOutcome, calibration_of, finished, refuse_unprunable, repairs
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage


def trained_stage(space: Workspace, stage: PruneStage, out: Path) -> PruneOutcome:
    """Trains the current network with the method's hook, removes what the hook does not keep, and saves the result.

    Raises:
        MethodError: The method cannot do what was asked.
        RecipeError: There are no epochs, or no data set.
        VerificationError: The result is not the masked network; nothing is saved.
    """
    loaded = space.model()
    refuse_unprunable(space)
    if not stage.epochs or space.data_name() is None:
        missing = "say for how long with --epochs" if space.data_name() is not None else "name a data set with --data"
        raise RecipeError(f"method {stage.method} prunes while the network trains: {missing}")
    space.judging.check()
    spec = get_method(stage.method)
    params: Any = spec.params(**stage.params)
    recalibrate, compensation = repairs(space, stage)
    split = space.data().training_split()
    step = space.lineage.step(
        "prune", {"epochs": stage.epochs, "lr": stage.lr, "optimizer": stage.optimizer}, split=split
    )
    room_for(space, out, states=True)
    with (
        resource_errors(space.recipe.data.batch_size),
        saved_states(space, out, identity_of(space, stage)) as states,
    ):
        network = copied(loaded.model).to(space.device)  # the original stays what the result is compared with
        hook, removal = _prepared(space, stage, network, spec.load(), params)
        batches, validation = space.inputs.training(split), space.data().validation
        config = FitConfig(epochs=stage.epochs, lr=stage.lr, optimizer=stage.optimizer)
        with space.sink.progress(stage.method, stage.epochs * len(batches)) as advance:
            fit(
                space.judging.classifier(network),
                batches,
                space.inputs.batches(validation) if validation is not None else None,
                config,
                space.device,
                task=space.judging.training_task(),
                seed=space.recipe.seed,
                hooks=[hook],
                progress=FitProgress(space.sink, advance, stage.method, stage.epochs),
                keeper=states,
                tell=space.sink.note,
            )
        crash_point("stage:trained")
        calibration = calibration_of(space, stage, split)
        pruned = remove_kept(
            network, hook.keep(), removal(calibration=calibration, compensation=compensation, recalibrate=recalibrate)
        )
        space.report_bad()
        settings = {"params": stage.params, "keep": list(stage.keep), "compensate": compensation}
        manifest = continued_manifest(loaded.manifest, pruned, settings, seed=space.recipe.seed, step=step)
        crash_point("stage:pruned")
        return finished(space, stage, LoadedModel(pruned.model, manifest, loaded.fixed_size), pruned.report, out)


def _prepared(
    space: Workspace, stage: PruneStage, network: nn.Module, method: TrainedMethod, params: Any
) -> tuple[PruningHook, Any]:
    """The hook, and what makes the `Removal` of its selection."""
    example = space.inputs.example()
    bounds = params if isinstance(params, StructuralParams) else StructuralParams()
    request = PruneRequest(
        method=stage.method, params=bounds, example_inputs=example, keep=stage.keep, seed=space.recipe.seed
    )
    selection = select(network, request)
    generator = torch.Generator().manual_seed(space.recipe.seed)
    hook = method(network, params, TrainedContext(selection, example, generator, stage.epochs))
    if not isinstance(hook, PruningHook):
        raise MethodError(f"method {stage.method}: its entry has to make a PruningHook, not a {type(hook).__name__}")

    def removal(**repair: Any) -> Removal:
        return Removal(method=stage.method, selection=selection, example_inputs=example, **repair)

    return hook, removal
