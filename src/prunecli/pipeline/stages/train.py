"""The stages train and finetune, from a workspace to a file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.confinement import stays_inside
from prunecli.checkpoint.durable import crash_point
from prunecli.checkpoint.io import file_sha256
from prunecli.checkpoint.manifest import Manifest
from prunecli.data.catalog import holds_events
from prunecli.data.loader import Augmentation, TrainingBatches, training_batches
from prunecli.data.splits import ImageData, Split
from prunecli.engine.fit import Epoch, FitConfig, FitResult, fit
from prunecli.engine.tasks import Accuracy, Figures
from prunecli.engine.tracking import MetricsLog
from prunecli.errors import ModelError, RecipeError
from prunecli.inputs import logits
from prunecli.models.loading import LoadedModel, load_companion
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import DEFAULT_DATA, Workspace
from prunecli.recipe.schema import FinetuneStage, TrainStage

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
    learned_from = {}
    if teacher is not None:
        _check_teacher(space, space.classifier(teacher.model))
        learned_from = {"teacher's sha256": teacher.sha256}
    split = data.training_split()
    step = space.step(stage.stage, _settings(stage), split=split)
    config = _fit_config(stage, space.recipe.seed)
    train = _batches(space, stage, split)
    validation = space.batches(data.validation) if data.validation is not None else None
    if stage.patience is not None and validation is None:
        raise RecipeError("--patience needs validation images; use a --val-fraction over 0")
    log_path = out.with_suffix(".metrics.jsonl")
    title = "finetune" if finetuning else "train"
    room_for(space, out, states=True)
    with (
        saved_states(space, out, identity_of(space, stage, **learned_from)) as states,
        MetricsLog(log_path, tensorboard=stage.tensorboard, continued=states.exists(), warn=space.sink.warn) as log,
        space.sink.progress(title, config.epochs * len(train)) as advance,
    ):
        space.sink.note(f"{title} {loaded.name} on {len(split.labels)} images of {data.name}, {space.device.type}")
        progress = _FitProgress(space, log, advance, config.epochs)
        result = fit(
            space.classifier(),
            train,
            validation,
            config,
            space.device,
            num_classes=data.num_classes,
            teacher=space.classifier(teacher.model) if teacher is not None else None,
            progress=progress,
            task=space.task(),
            keeper=states,
            tell=space.sink.note,
        )
        space.tell_bad()
        crash_point("stage:trained")
        loaded.manifest.history.append(step.model_copy(update={"figures": _fit_figures(result)}))
        path = space.finish(loaded, out)
    return TrainOutcome(path, log_path, result)


def _batches(space: Workspace, stage: TrainStage, split: Split) -> TrainingBatches:
    """The training images as the stage wants them augmented."""
    section = space.recipe.data
    return training_batches(
        split,
        space.preprocessing(),
        Augmentation(space.data().flip, stage.auto_augment, stage.color_jitter, stage.random_erasing),
        section.batch_size,
        seed=space.recipe.seed,
        workers=section.workers,
        bad=space.bad,
    )


def _teacher(space: Workspace, name: str) -> LoadedModel:
    if name != "parent":
        return load_companion(Path(name).expanduser(), space.model().manifest.architecture.ref)
    if space.parent is not None:
        return space.parent
    step = space.model().manifest.last("prune")
    if step is None or step.parent is None:
        raise ModelError(f"{space.model().name}: names no parent it was pruned from; give --teacher a weights file")
    # Its path was written down where pruning ran, perhaps by somebody else; it may also lie beside the checkpoint.
    here = space.model().path or Path()
    places = [
        p for p in (Path(step.parent), here.with_name(Path(step.parent).name)) if stays_inside(p, here.parent, Path())
    ]
    path = next((p for p in places if p.is_file() and file_sha256(p) == step.parent_sha256), None)
    if path is None:
        raise ModelError(
            f"{step.parent}: the parent is not in this folder or the checkpoint's, or has changed; give --teacher the "
            "file it was pruned from"
        )
    return load_companion(path, space.model().manifest.architecture.ref)


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
    rate = trained.settings.get("lr") if trained is not None else None
    if trained is not None and trained.settings.get("optimizer") == stage.optimizer and isinstance(rate, (int, float)):
        return float(rate) / 10 or _FINETUNE_LR
    return _FINETUNE_LR


def _check_augmentation(stage: TrainStage, data: ImageData) -> None:
    """Refuses what would change an image and leave its mask as it is, or what does not know frames."""
    if holds_events(data.name) and stage.cutmix:
        raise RecipeError(f"--cutmix cuts images, and {data.name} has frames of events: leave it out")
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
