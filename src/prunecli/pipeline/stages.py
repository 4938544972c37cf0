"""The stages: train, prune, finetune and eval, each from a workspace to a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.checkpoint.io import file_sha256
from prunecli.checkpoint.manifest import Manifest
from prunecli.data.loader import Augmentation, CalibrationBatches, training_batches
from prunecli.data.splits import ImageData
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import Epoch, FitConfig, FitResult, fit
from prunecli.engine.tasks import Accuracy, Figures
from prunecli.engine.tracking import MetricsLog
from prunecli.errors import ModelError, RecipeError
from prunecli.measure.counts import count_macs, nonzero_count, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.measure.forward import logits
from prunecli.measure.latency import PairedTiming, Timing, time_model, time_paired
from prunecli.measure.memory import peak_memory_bytes
from prunecli.methods.registry import get_method
from prunecli.models.loading import LoadedModel, load_companion
from prunecli.pipeline.progressive import StepTraining
from prunecli.pipeline.pruning import PruneReport, prune_model
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import DEFAULT_DATA, Workspace
from prunecli.recipe.schema import EvalStage, FinetuneStage, PruneStage, TrainStage
from prunecli.report.schema import REPORT_SCHEMA, DataInfo, Latency, Metrics, ModelInfo, Report
from prunecli.surgery.compensate import Compensation

_FINETUNE_LR = 0.01


@dataclass(frozen=True)
class TrainOutcome:
    """What a training stage left behind."""

    path: Path
    metrics_path: Path
    result: FitResult

    @property
    def chosen(self) -> Epoch:
        """The epoch whose weights were kept."""
        return self.result.epochs[self.result.chosen - 1]


@dataclass(frozen=True)
class PruneOutcome:
    """What a prune stage left behind; `timing` has the networks before and after, timed in turns."""

    path: Path
    report: PruneReport
    timing: PairedTiming


def train_stage(space: Workspace, stage: TrainStage, out: Path) -> TrainOutcome:
    """Trains the current network, or finetunes it, and saves it with its manifest.

    Raises:
        DataError: The data cannot be used with the network.
        RecipeError: A setting is wrong.
    """
    finetuning = isinstance(stage, FinetuneStage)
    if space.recipe.model.weights is None and space.loaded is None:
        space.use_data(DEFAULT_DATA)
    loaded = space.model()
    data = space.data()
    space.check_classes()
    stage = dataclasses.replace(stage, lr=_learning_rate(stage, loaded.manifest))
    _check_augmentation(stage, data)
    teacher = _teacher(space, stage.teacher) if isinstance(stage, FinetuneStage) and stage.teacher else None
    if teacher is not None:
        _check_teacher(space, teacher)
    split = data.training_split()
    step = space.step(stage.stage, _settings(stage), split=split)
    config = _fit_config(stage, space.recipe.seed)
    section = space.recipe.data
    train = training_batches(
        split,
        space.preprocessing(),
        Augmentation(data.flip, stage.auto_augment, stage.color_jitter, stage.random_erasing),
        section.batch_size,
        seed=space.recipe.seed,
        workers=section.workers,
    )
    validation = space.batches(data.validation) if data.validation is not None else None
    if stage.patience is not None and validation is None:
        raise RecipeError("--patience needs validation images; use a --val-fraction over 0")
    log_path = out.with_suffix(".metrics.jsonl")
    title = "finetune" if finetuning else "train"
    space.sink.note(f"{title} {loaded.name} on {len(split.labels)} images of {data.name}, {space.device.type}")
    with (
        MetricsLog(log_path, tensorboard=stage.tensorboard) as log,
        space.sink.progress(title, config.epochs * len(train)) as advance,
    ):
        progress = _FitProgress(space, log, advance, config.epochs)
        result = fit(
            loaded.model,
            train,
            validation,
            config,
            space.device,
            num_classes=data.num_classes,
            teacher=teacher,
            progress=progress,
            task=space.task(),
        )
    loaded.manifest.history.append(step.model_copy(update={"figures": _fit_figures(result)}))
    space.finish(loaded, out)
    return TrainOutcome(out, log_path, result)


def prune_stage(space: Workspace, stage: PruneStage, out: Path) -> PruneOutcome:
    """Prunes the current network, verifies it, and saves it with its manifest.

    Raises:
        MethodError: Nothing can be removed as asked.
        VerificationError: The result is not the masked original; nothing is saved.
    """
    loaded = space.model()
    if space.recipe.model.weights is None and not space.recipe.model.pretrained and not loaded.manifest.history:
        space.sink.warn(f"{loaded.name} has random weights; give a weights file, or --pretrained")
    method = get_method(stage.method)
    data = space.data() if space.data_name() is not None else None
    recalibrate, compensation = _repairs(stage, data)
    if data is None and (method.needs_data or stage.epochs):
        what = f"method {stage.method}" if method.needs_data else "--epochs"
        raise RecipeError(f"{what} needs images: name a data set with --data")
    if data is not None and data.train is None:
        space.sink.warn(f"{data.name} has no training images, so nothing is compensated or recalibrated")
    calibration = None
    training = {"epochs": stage.epochs, "lr": stage.lr, "optimizer": stage.optimizer} if stage.epochs else {}
    step = space.step("prune", training)
    if recalibrate or compensation != "none" or method.needs_data:
        assert data is not None
        split = data.training_split()
        step = space.step("prune", training, split=split)
        calibration = CalibrationBatches(
            split,
            space.preprocessing(),
            stage.calibration_images,
            space.recipe.data.batch_size,
            seed=space.recipe.seed,
        )
    example = space.example()
    result = prune_model(
        loaded.model.to(space.device),
        loaded.manifest,
        stage.method,
        method.params(**stage.params),
        example,
        keep=stage.keep,
        seed=space.recipe.seed,
        calibration=calibration.labelled if calibration is not None else None,
        compensation=compensation,
        recalibrate=recalibrate,
        recover=StepTraining(space, stage) if stage.epochs else None,
        step=step,
    )
    networks = [loaded.model.cpu(), result.model.cpu()]
    timing = time_paired(networks, [example, example], rounds=stage.latency_rounds, device=space.device)
    space.parent = loaded
    space.finish(LoadedModel(result.model, result.manifest, loaded.fixed_size), out)
    return PruneOutcome(out, result.report, timing)


def eval_stage(space: Workspace, stage: EvalStage, out: Path | None) -> Report:
    """Measures the current network and writes its report.

    Raises:
        DataError: Accuracy is asked for and the data cannot be used with the network.
    """
    loaded = space.model()
    accuracy: dict[str, Any] = {}
    info = None
    if "accuracy" in stage.measure:
        if space.data_name() is not None:
            accuracy, info = _accuracy(space, stage)
        else:
            space.sink.warn("no data set, so no accuracy: name one with --data")
    example = space.example()
    model = loaded.model.cpu()
    macs = count_macs(model, example) if "macs" in stage.measure else None
    metrics = Metrics(
        **accuracy,
        params=parameter_count(model) if "params" in stage.measure else None,
        params_nonzero=nonzero_count(model) if "params" in stage.measure else None,
        macs=macs.total if macs else None,
        macs_uncounted=macs.uncounted if macs else (),
        latency_ms=_latency(space, model, stage.latency_rounds) if "latency" in stage.measure else None,
        peak_memory_bytes=peak_memory_bytes(model, example) if "memory" in stage.measure else None,
        size_bytes=loaded.path.stat().st_size if loaded.path and "size" in stage.measure else None,
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
        environment=describe_environment(space.device),
        seed=space.recipe.seed,
        command=space.command,
    )
    if out is not None:
        write_text_atomically(out, report.to_json())
        space.reports.append(out)
    return report


def _accuracy(space: Workspace, stage: EvalStage) -> tuple[dict[str, Any], DataInfo]:
    """Figures of the data's task by their names in a report, and what they were measured on."""
    data = space.data()
    space.check_classes()
    split = data.test if stage.split == "test" else data.validation
    if split is None:
        raise RecipeError(f"{data.name} has no validation split; use --split test or a --val-fraction over 0")
    with space.sink.progress(f"eval {data.name}", len(split.labels)) as advance:
        figures = evaluate(
            space.model().model,
            space.batches(split),
            space.device,
            lambda done: advance(done, f"{done} images"),
            space.task(),
        )
    info = DataInfo(name=data.name, split=stage.split, images=figures.images, fingerprint=split.fingerprint())
    named = dataclasses.asdict(figures)
    if not isinstance(figures, Accuracy):
        found = zip(data.class_names, figures.class_iou, strict=True)
        named["class_iou"] = {name: value for name, value in found if value is not None}
    return named, info


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


def _teacher(space: Workspace, name: str) -> nn.Module:
    if name != "parent":
        return load_companion(Path(name).expanduser(), space.model().manifest.architecture.ref).model
    if space.parent is not None:
        return space.parent.model
    step = space.model().manifest.last("prune")
    if step is None or step.parent is None:
        raise ModelError(f"{space.model().name}: names no parent it was pruned from; give --teacher a weights file")
    # Its path was written down where pruning ran; it may also lie beside the checkpoint.
    here = space.model().path
    places = [Path(step.parent), *([here.with_name(Path(step.parent).name)] if here is not None else [])]
    path = next((p for p in places if p.is_file() and file_sha256(p) == step.parent_sha256), None)
    if path is None:
        raise ModelError(
            f"{step.parent}: the parent is gone or has changed; give --teacher the file it was pruned from"
        )
    return load_companion(path, space.model().manifest.architecture.ref).model


def _check_teacher(space: Workspace, teacher: nn.Module) -> None:
    shape = "x".join(map(str, space.input_shape()))
    try:
        with torch.no_grad():
            outputs = logits(teacher.cpu().eval()(space.example())).shape[1]
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"--teacher does not run on {shape} images; give a network for the same data") from error
    if outputs != space.data().num_classes:
        raise ModelError(f"--teacher has {outputs} outputs, not {space.data().num_classes}; give one for the same data")


def _fit_config(stage: TrainStage, seed: int) -> FitConfig:
    names = {field.name for field in dataclasses.fields(FitConfig)}
    chosen = {key: value for key, value in dataclasses.asdict(stage).items() if key in names}
    return FitConfig(**chosen, seed=seed)


def _learning_rate(stage: TrainStage, manifest: Manifest) -> float:
    """What the stage says, else a tenth of what the network was trained with, as is usual after pruning."""
    if stage.lr is not None:
        return stage.lr
    trained = manifest.last("train")
    if trained is not None and trained.settings.get("optimizer") == stage.optimizer:
        return float(str(trained.settings["lr"])) / 10
    return _FINETUNE_LR


def _check_augmentation(stage: TrainStage, data: ImageData) -> None:
    """Refuses what would change an image and leave its mask as it is."""
    if data.task == "classification":
        return
    for name in ("mixup", "cutmix", "auto_augment", "random_erasing"):
        if getattr(stage, name):
            raise RecipeError(
                f"--{name.replace('_', '-')} is for images with one class each; {data.name} has masks: leave it out "
                "(they are scaled, cropped and mirrored; --color-jitter works)"
            )


def _settings(stage: TrainStage) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(stage).items() if key not in ("stage", "tensorboard")}


def _fit_figures(result: FitResult) -> dict[str, Any]:
    chosen = result.epochs[result.chosen - 1]
    figures: dict[str, Any] = {"epochs": len(result.epochs), "chosen_epoch": result.chosen, "train_loss": chosen.loss}
    if chosen.validation is not None:
        figures |= _validation_figures(chosen.validation)
    return figures


def _validation_figures(figures: Figures) -> dict[str, float]:
    """What a log and a manifest say of a validation split."""
    named = {f"validation_{figures.score_name}": figures.score, "validation_loss": figures.loss}
    if not isinstance(figures, Accuracy):
        named["validation_pixel_accuracy"] = figures.pixel_accuracy
    return named


class _FitProgress:
    """Turns what `fit` reports into a log, a bar and lines."""

    def __init__(self, space: Workspace, log: MetricsLog, advance: Advance, epochs: int) -> None:
        self._space, self._log, self._advance, self._epochs = space, log, advance, epochs

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._advance((epoch - 1) * steps + step, f"epoch {epoch}/{self._epochs} loss {loss:.4f}")

    def on_epoch(self, epoch: Epoch) -> None:
        validation = epoch.validation
        self._log.write(
            {
                "epoch": epoch.epoch,
                "lr": epoch.lr,
                "train_loss": epoch.loss,
                **(_validation_figures(validation) if validation else {}),
                "seconds": round(epoch.seconds, 3),
            }
        )
        shown = f", validation {validation.score_label} {validation.score:.2f} %" if validation else ""
        self._space.sink.note(
            f"epoch {epoch.epoch}/{self._epochs}: loss {epoch.loss:.4f}{shown}, {epoch.seconds:.1f} s"
        )
