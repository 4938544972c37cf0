"""Prune stages of methods that remove channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prunecli.checkpoint.durable import crash_point
from prunecli.copying import freed_at_once, is_large
from prunecli.criteria.base import default_loss
from prunecli.data.loader import Batches
from prunecli.data.splits import DataSet, Split
from prunecli.engine.detectors.index import detector_of
from prunecli.engine.resources import resource_errors
from prunecli.errors import MethodError, RecipeError
from prunecli.measure.environment import library_versions
from prunecli.measure.latency import PairedTiming
from prunecli.methods.outcome import PruneReport
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.runtime import recorded_change
from prunecli.methods.score_memory import ScoreMemory
from prunecli.methods.spec import MethodSpec
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.offload import check_memory, on_the_disk
from prunecli.pipeline.progressive import StepTraining
from prunecli.pipeline.pruning import prune_model
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.timed import note_timings, timed_in_turns
from prunecli.pipeline.tracked import training_log
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.pruning_tables import (
    left_alone_tables,
    pruning_table,
    reconstruction_tables,
    repair_tables,
    scoring_tables,
    trained_tables,
)
from prunecli.report.schema import Metrics
from prunecli.report.score_change import ScoreChange
from prunecli.report.table import Table
from prunecli.surgery.removal.compensate import Compensation


@dataclass(frozen=True)
class PruneOutcome:
    """What a stage that removed channels left behind.

    Attributes:
        path: The checkpoint.
        report: What was removed.
        timing: The networks before and after, timed in turns; None where their weights were on the disk.
        energy: Firing and energy before and after, on training images; None without spiking neurons or data.
        score: The score of the task before and after, if it was measured.
        trained: Figures of a method that pruned while it trained.
    """

    path: Path
    report: PruneReport
    timing: PairedTiming | None
    energy: tuple[Metrics, Metrics] | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)
    score: ScoreChange | None = None

    def figures(self) -> dict[str, Any]:
        """Share removed, the difference to the masked original, and the score if it was measured."""
        score = self.score.figures() if self.score is not None else {}
        return {"achieved": self.report.achieved, "verify_error": self.report.verify_error, **score, **self.trained}

    def document(self) -> dict[str, Any]:
        """Everything, without kept indices."""
        return {
            "checkpoint": str(self.path),
            **self.report.to_dict(),
            **_latencies(self.timing),
            "energy": [figures.model_dump(exclude_none=True) for figures in self.energy] if self.energy else None,
            "score": self.score.document() if self.score is not None else None,
            **({"trained": dict(self.trained)} if self.trained else {}),
        }

    def tables(self) -> Sequence[Table]:
        """Figures before and after, and layers left alone."""
        table = pruning_table(self.report, self.timing, self.energy, self.score)
        return [
            table,
            *repair_tables(self.report.repairs),
            *reconstruction_tables(self.report.reconstruction),
            *scoring_tables(self.report.scoring),
            *trained_tables(self.trained),
            *left_alone_tables({entry.name: entry.reason for entry in self.report.untouched}),
        ]


def _latencies(timing: PairedTiming | None) -> dict[str, Any]:
    if timing is None:
        return dict.fromkeys(("latency_ms_before", "latency_ms_after", "latency_ratio", "latency_ratio_interval"))
    return {
        "latency_ms_before": timing.timings[0].median,
        "latency_ms_after": timing.timings[1].median,
        "latency_ratio": timing.ratios[1],
        "latency_ratio_interval": list(timing.ratio_intervals[1]),
    }


def structural_stage(space: Workspace, stage: PruneStage, out: Path) -> PruneOutcome:
    """Prunes the current network, verifies it, and saves it with its manifest.

    Raises:
        MethodError: Nothing can be removed as asked.
        VerificationError: The result is not the masked original; nothing is saved.
    """
    with on_the_disk(space, stage, out), _as_stored(space, stage):
        large = is_large(space.stored_model().model)
        check_memory(space, stage)
        with freed_at_once() if large or space.scratch is not None else nullcontext():
            return _pruned(space, stage, out)


def _pruned(space: Workspace, stage: PruneStage, out: Path) -> PruneOutcome:
    loaded = space.model()
    refuse_unprunable(space)
    method, data = get_method(stage.method), space.data() if space.data_name() is not None else None
    params: StructuralParams = method.params_class(**stage.params)
    compared = params.schedule == "once" and not stage.epochs and detector_of(loaded.model) is None
    recalibrate, compensation = repairs(space, stage, compared=compared)
    on_data = [f"--{kind}" for kind in space.activity.targets_on_data if stage.params.get(kind) is not None]
    on_data += ["--scope measured"] if params.scope == "measured" and not params.layer_ratio else []
    on_data += ["--retention epsilon"] if stage.params.get("retention") == "epsilon" else []
    if data is None and (method.needs_data or stage.epochs or on_data):
        what = f"method {stage.method}" if method.needs_data else "--epochs" if stage.epochs else on_data[0]
        raise RecipeError(f"{what} needs images: name a data set with --data")
    scored = method.without_data is not None and getattr(params, "looks_at_inputs", True)
    looks = recalibrate is not False or compensation != "none" or method.needs_data or bool(on_data)
    looks = looks or (scored and data is not None and data.trainable)
    split = data.training_split() if data is not None and looks else None
    calibration = calibration_of(space, stage, split)
    if calibration is None and scored:
        params = _without_data(space, method, params)
    training = {"epochs": stage.epochs, "lr": stage.lr, "optimizer": stage.optimizer} if stage.epochs else {}
    example = space.inputs.example()
    room_for(space, out, states=stage.epochs > 0)
    with (
        resource_errors(space.recipe.data.batch_size),
        saved_states(space, out, identity_of(space, stage)) as states,
        training_log(space, stage, out, continued=states.exists()) as log,
    ):
        recover = StepTraining(space, stage, states, log) if stage.epochs else None
        request = PruneRequest(
            method=stage.method,
            params=params,
            example_inputs=example,
            keep=stage.keep,
            seed=space.recipe.seed,
            calibration=calibration,
            loss=default_loss if calibration is None else space.judging.loss(),
            compensation=compensation,
            recalibrate=recalibrate,
            recover=recover,
            resume=recover.resume if recover is not None else None,
            memory=_memory(space, stage),
        )
        step = space.lineage.step("prune", training, split=split)
        network = loaded.model if space.scratch is not None else loaded.model.to(space.device)
        result = prune_model(network, loaded.manifest, request, step=step)
        space.report_bad()
        crash_point("stage:pruned")
        return finished(space, stage, LoadedModel(result.model, result.manifest, loaded.fixed_size), result.report, out)


def _memory(space: Workspace, stage: PruneStage) -> ScoreMemory | None:
    """Scores of other runs that rank the same network, by all that decides them but the method's parameters."""
    if space.scores is None:
        return None
    unlike = {name: getattr(stage, name) for name in ("calibration_images", "keep")}
    about = identity_of(space, dataclasses.replace(PruneStage(), **unlike))
    return ScoreMemory(
        space.scores, {**about, **library_versions(), "device": str(space.device), "threads": torch.get_num_threads()}
    )


@contextmanager
def _as_stored(space: Workspace, stage: PruneStage) -> Iterator[None]:
    """Leaves a large network in the precision of its file where only its weights are looked at."""
    space.stored_model()  # whose history may name data
    weights_alone = space.data_name() is None and not stage.epochs and stage.params.get("latency") is None
    space.as_stored = weights_alone and get_method(stage.method).without_data is None
    try:
        yield
    finally:
        space.as_stored = False


def refuse_unprunable(space: Workspace) -> None:
    """Checks that channels of the current network can be removed, and warns if it has random weights.

    Raises:
        MethodError: It runs differently than its weights say.
    """
    loaded = space.model()
    if space.untrained():
        space.sink.warn(f"{loaded.name} has random weights; give a weights file, or --pretrained")
    recorded = recorded_change(loaded.manifest)
    if recorded is not None:
        raise MethodError(
            f"{loaded.name}: {recorded.method.done} already; prune its channels first, and do that afterwards"
        )


def repairs(space: Workspace, stage: PruneStage, *, compared: bool = False) -> tuple[bool | None, Compensation]:
    """Whether to recalibrate and how to compensate, where there are training images.

    Args:
        space: Network and data.
        stage: What is said.
        compared: Whether what is not said is decided by comparing repairs, else regression and recalibration.

    Raises:
        RecipeError: There are no images for what is asked.
    """
    data: DataSet | None = space.data() if space.data_name() is not None else None
    images = data is not None and data.trainable
    recalibrate, compensation = stage.recalibrate, stage.compensate
    if recalibrate is None and not (images and compared):
        recalibrate = images
    if compensation is None:
        compensation = ("auto" if compared else "ls") if images else "none"
    if data is None and (recalibrate or compensation != "none"):
        raise RecipeError("--recalibrate and --compensate need images: name a data set with --data")
    if space.model().manifest.masks is not None:
        if stage.compensate not in (None, "none"):
            raise RecipeError(f"--compensate {stage.compensate} would fill masked weights; leave it out")
        compensation = "none"
    if data is not None and not images:
        space.sink.warn(f"{data.name} has no training images, so nothing is compensated or recalibrated")
    return recalibrate, compensation


def calibration_of(space: Workspace, stage: PruneStage, split: Split | None) -> Batches | None:
    """Batches of images and labels from `split`."""
    return None if split is None else space.inputs.calibration(split, stage.calibration_images).labelled


def finished(
    space: Workspace,
    stage: PruneStage,
    pruned: LoadedModel,
    report: PruneReport,
    out: Path,
    trained: Mapping[str, Any] | None = None,
) -> PruneOutcome:
    """Times the networks before and after in turns, and saves the pruned one as the run's current network."""
    loaded, example = space.model(), space.inputs.example()
    networks = [loaded.model.cpu(), pruned.model.cpu()]
    timing = None
    if space.scratch is None:
        timing = timed_in_turns(space, networks, example, stage.latency_rounds)
        note_timings(space, [timing])
    energy = None
    if space.data_name() is not None:
        energy = space.activity.before_and_after(networks, stage.calibration_images)
    space.parent = loaded
    return PruneOutcome(space.lineage.finish(pruned, out), report, timing, energy, trained or {})


def _without_data(space: Workspace, method: MethodSpec, params: StructuralParams) -> StructuralParams:
    """Parameters with which a method needs no images.

    Raises:
        RecipeError: Others were asked for.
    """
    instead, default = method.without_data or {}, method.params_class()
    for name in instead:
        if getattr(params, name) != getattr(default, name):
            raise RecipeError(f"--{name} {getattr(params, name)} needs images: name a data set with --data")
    space.activity.warn_ranked_without_data(", ".join(f"{name} {value}" for name, value in instead.items()))
    return dataclasses.replace(params, **instead)
