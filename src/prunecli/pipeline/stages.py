"""The stages prune and eval, each from a workspace to a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunecli.checkpoint.durable import reach, write_text_atomically
from prunecli.criteria.base import default_loss
from prunecli.data.loader import Batches, CalibrationBatches
from prunecli.data.splits import ImageData, Split
from prunecli.engine.evaluate import evaluate
from prunecli.engine.resources import resource_errors
from prunecli.engine.retrieval import Recalls
from prunecli.engine.tasks import Figures
from prunecli.errors import GateFailed, MethodError, RecipeError
from prunecli.measure.counts import count_macs, nonzero_count, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import PairedTiming, Timing, time_model, time_paired
from prunecli.measure.memory import peak_memory_bytes
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.registry import get_method
from prunecli.methods.targets import SPIKE_TARGETS
from prunecli.models.loading import LoadedModel
from prunecli.models.prompt_classifier import has_text_tower
from prunecli.pipeline.judging import judge_of, loss_of, named_figures
from prunecli.pipeline.probing import linear_probe
from prunecli.pipeline.profiling import energy_figures, spikes_before_and_after, split_for
from prunecli.pipeline.progressive import StepTraining
from prunecli.pipeline.pruning import PruneReport, prune_model
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import EvalStage, PruneStage
from prunecli.report.conditions import Condition
from prunecli.report.schema import METRIC_NAMES, REPORT_SCHEMA, DataInfo, Latency, Metrics, ModelInfo, Report
from prunecli.surgery.compensate import Compensation


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
        reach("stage:pruned")
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


def eval_stage(space: Workspace, stage: EvalStage, out: Path | None) -> Report:
    """Measures the current network and writes its report.

    Raises:
        DataError: Accuracy is asked for and the data cannot be used with the network.
    """
    loaded = space.model()
    texts = has_text_tower(loaded.model)
    if stage.task == "zeroshot" and not texts:
        raise RecipeError(
            f"--task zeroshot: {loaded.name} has no text tower; leave it out, or give an open_clip network"
        )
    if stage.task == "classification" and texts:
        raise RecipeError(
            f"--task classification: {loaded.name} has a text tower and no classifier; use --task zeroshot"
        )
    if stage.task in ("zeroshot", "classification", "retrieval") and space.data_name() is not None:
        captions = space.data().task == "retrieval"
        if captions != (stage.task == "retrieval"):
            has, task = ("captions", "retrieval") if captions else ("no captions", "zeroshot")
            raise RecipeError(f"--task {stage.task}: {space.data().name} has {has}; use --task {task}")
    accuracy: dict[str, Any] = {}
    info = None
    if "accuracy" in stage.measure:
        if space.data_name() is not None:
            accuracy, info = _accuracy(space, stage)
        else:
            space.sink.warn("no data set, so no accuracy: name one with --data")
    example = space.example()
    model = loaded.model.cpu()
    with space.running():
        macs = count_macs(model, example) if "macs" in stage.measure else None
        latency = _latency(space, model, stage.latency_rounds) if "latency" in stage.measure else None
        memory = peak_memory_bytes(model, example) if "memory" in stage.measure else None
        energy = energy_figures(space, stage, macs, example)
    metrics = Metrics(
        **accuracy,
        params=parameter_count(model) if "params" in stage.measure else None,
        params_nonzero=nonzero_count(model) if "params" in stage.measure else None,
        macs=macs.total if macs else None,
        macs_uncounted=macs.uncounted if macs else (),
        latency_ms=latency,
        peak_memory_bytes=memory,
        size_bytes=loaded.path.stat().st_size if loaded.path and "size" in stage.measure else None,
        **energy.metrics,
    )
    report = Report(
        schema=REPORT_SCHEMA,
        model=ModelInfo(
            ref=loaded.manifest.architecture.ref,
            path=str(loaded.path) if loaded.path else None,
            sha256=loaded.sha256,
            input_shape=space.input_shape(),
            arguments=loaded.manifest.architecture.kwargs,
        ),
        data=info,
        metrics=metrics,
        **energy.report,
        environment=describe_environment(space.device),
        seed=space.recipe.seed,
        command=space.command,
    )
    if out is not None:
        write_text_atomically(out, report.to_json(), replace=space.may_replace)
        space.reports.append(out)
    return report


def required(stage: EvalStage) -> Condition | None:
    """What the figures of a stage have to meet, if anything.

    Raises:
        RecipeError: It is no condition.
    """
    return Condition(stage.require, METRIC_NAMES, "require", "top1 >= 95") if stage.require is not None else None


def unmet(stage: EvalStage, report: Report) -> GateFailed | None:
    """The failure to raise once the report is shown: its figures are not what the stage requires.

    Raises:
        RecipeError: A figure that the condition needs was not measured.
    """
    condition = required(stage)
    name = report.model.path or report.model.ref
    figures = report.metrics.model_dump() | {"name": name}
    if condition is None or condition.true_of(figures):
        return None
    found = ", ".join(f"{figure} is {figures[figure]:g}" for figure in condition.named)
    return GateFailed(f"{name}: required {condition.text}, but {found}")


def _accuracy(space: Workspace, stage: EvalStage) -> tuple[dict[str, Any], DataInfo]:
    """Figures of the data's task by their names in a report, and what they were measured on."""
    data = space.data()
    split = split_for(space, stage.split)
    if stage.task == "linear-probe":
        figures: Figures | Recalls = linear_probe(space, split)
    else:
        space.check_classes()
        with space.sink.progress(f"eval {data.name}", len(split.labels)) as advance:
            figures = evaluate(
                space.classifier(remember=True),
                space.batches(split),
                space.device,
                lambda done: advance(done, f"{done} images"),
                task=judge_of(space),
            )
    space.tell_bad()
    info = DataInfo(
        name=data.name,
        split=stage.split,
        images=figures.images,
        fingerprint=split.fingerprint(),
        skipped=len(split.labels) - figures.images,
        task=_task(space, stage),
    )
    return named_figures(figures, data.class_names), info


def _task(space: Workspace, stage: EvalStage) -> str:
    """What was judged, by its name in a report."""
    if stage.task == "linear-probe":
        return stage.task
    if space.data().task != "classification":
        return space.data().task
    return "zeroshot" if has_text_tower(space.model().model) else "classification"


def _latency(space: Workspace, model: nn.Module, rounds: int) -> Latency:
    return latency_figures(time_model(model, space.example(), rounds=rounds, device=space.device))


def latency_figures(timing: Timing) -> Latency:
    """A timing of one image as a report records it."""
    return Latency(median=timing.median, interval=timing.interval, batch_size=1, runs=timing.runs)


def _repairs(stage: PruneStage, data: ImageData | None) -> tuple[bool, Compensation]:
    """Whether to recalibrate and how to compensate: both, where there are training images and nothing else is said."""
    images = data is not None and data.train is not None
    recalibrate = images if stage.recalibrate is None else stage.recalibrate
    compensation: Compensation = ("ls" if images else "none") if stage.compensate is None else stage.compensate
    if data is None and (recalibrate or compensation != "none"):
        raise RecipeError("--recalibrate and --compensate need images: name a data set with --data")
    return recalibrate, compensation
