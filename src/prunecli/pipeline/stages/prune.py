"""The stages prune and eval, each from a workspace to a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from prunecli.checkpoint.durable import crash_point
from prunecli.criteria.base import default_loss
from prunecli.data.loader import Batches, CalibrationBatches
from prunecli.data.splits import ImageData, Split
from prunecli.engine.resources import resource_errors
from prunecli.errors import MethodError, RecipeError
from prunecli.measure.latency import PairedTiming, time_paired
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.registry import get_method
from prunecli.methods.targets import SPIKE_TARGETS
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.judging import loss_of
from prunecli.pipeline.profiling import spikes_before_and_after
from prunecli.pipeline.progressive import StepTraining
from prunecli.pipeline.pruning import PruneReport, prune_model
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.schema import Metrics
from prunecli.surgery.removal.compensate import Compensation


@dataclass(frozen=True)
class PruneOutcome:
    """What a prune stage left behind.

    Attributes:
        path: The checkpoint.
        report: What was removed.
        timing: The networks before and after, timed in turns.
        energy: Firing and energy before and after, on training images; None without spiking neurons or data.
    """

    path: Path
    report: PruneReport
    timing: PairedTiming
    energy: tuple[Metrics, Metrics] | None = None


def prune_stage(space: Workspace, stage: PruneStage, out: Path) -> PruneOutcome:
    """Prunes the current network, verifies it, and saves it with its manifest.

    Raises:
        MethodError: Nothing can be removed as asked.
        VerificationError: The result is not the masked original; nothing is saved.
    """
    loaded = space.model()
    if space.untrained():
        space.sink.warn(f"{loaded.name} has random weights; give a weights file, or --pretrained")
    method = get_method(stage.method)
    if loaded.manifest.tokens is not None:
        raise MethodError(f"{loaded.name}: leaves tokens out already; prune its channels first, then its tokens")
    data = space.data() if space.data_name() is not None else None
    recalibrate, compensation = _repairs(stage, data)
    aims = [f"--{kind}" for kind in SPIKE_TARGETS if stage.params.get(kind) is not None]
    aims = aims if spiking_neurons(loaded.model) else []  # that there are none is said where the target is measured
    if data is None and (method.needs_data or stage.epochs or aims):
        what = f"method {stage.method}" if method.needs_data else "--epochs" if stage.epochs else aims[0]
        raise RecipeError(f"{what} needs images: name a data set with --data")
    if data is not None and data.train is None:
        space.sink.warn(f"{data.name} has no training images, so nothing is compensated or recalibrated")
    params = method.params(**stage.params)
    scored = method.without_data is not None and getattr(params, "looks_at_inputs", True)
    looks = recalibrate or compensation != "none" or method.needs_data or bool(aims)
    looks = looks or (scored and data is not None and data.train is not None)
    split = data.training_split() if data is not None and looks else None
    training = {"epochs": stage.epochs, "lr": stage.lr, "optimizer": stage.optimizer} if stage.epochs else {}
    example = space.example()
    calibration = _calibration(space, stage, split)
    if calibration is None and scored:
        usual = method.params()
        for name in method.without_data or ():
            if getattr(params, name) != getattr(usual, name):
                raise RecipeError(f"--{name} {getattr(params, name)} needs images: name a data set with --data")
        params = dataclasses.replace(params, **(method.without_data or {}))
        instead = ", ".join(f"{name} {value}" for name, value in (method.without_data or {}).items())
        if spiking_neurons(loaded.model):  # else the method says that there are none
            space.sink.warn(
                f"no data set, so channels are ranked by {instead}: to rank them by what they do name one with --data"
            )
    room_for(space, out, states=stage.epochs > 0)
    with (
        resource_errors(space.recipe.data.batch_size),
        saved_states(space, out, identity_of(space, stage)) as states,
    ):
        recover = StepTraining(space, stage, states) if stage.epochs else None
        result = prune_model(
            loaded.model.to(space.device),
            loaded.manifest,
            stage.method,
            params,
            example,
            keep=stage.keep,
            seed=space.recipe.seed,
            calibration=calibration,
            loss=default_loss if calibration is None else loss_of(space),
            compensation=compensation,
            recalibrate=recalibrate,
            recover=recover,
            resume=recover.resume if recover is not None else None,
            step=space.step("prune", training, split=split),
        )
        space.tell_bad()
        crash_point("stage:pruned")
        networks = [loaded.model.cpu(), result.model.cpu()]
        timing = time_paired(networks, [example, example], rounds=stage.latency_rounds, device=space.device)
        energy = spikes_before_and_after(space, networks, stage.calibration_images) if data is not None else None
        if energy is not None and (energy[1].synops or 0) > (energy[0].synops or 0):
            space.sink.warn(
                f"the smaller network does more synaptic operations: the neurons of {loaded.name} hardly fire "
                f"({100 * (energy[0].firing_rate or 0):.2f} %), train it first"
            )
        space.parent = loaded
        path = space.finish(LoadedModel(result.model, result.manifest, loaded.fixed_size), out)
    return PruneOutcome(path, result.report, timing, energy)


def _calibration(space: Workspace, stage: PruneStage, split: Split | None) -> Batches | None:
    """Batches of images and labels from `split`."""
    if split is None:
        return None
    return CalibrationBatches(
        split,
        space.preprocessing(),
        stage.calibration_images,
        space.recipe.data.batch_size,
        seed=space.recipe.seed,
        bad=space.bad,
    ).labelled


def _repairs(stage: PruneStage, data: ImageData | None) -> tuple[bool, Compensation]:
    """Whether to recalibrate and how to compensate: both, where there are training images and nothing else is said."""
    images = data is not None and data.train is not None
    recalibrate = images if stage.recalibrate is None else stage.recalibrate
    compensation: Compensation = ("ls" if images else "none") if stage.compensate is None else stage.compensate
    if data is None and (recalibrate or compensation != "none"):
        raise RecipeError("--recalibrate and --compensate need images: name a data set with --data")
    return recalibrate, compensation
