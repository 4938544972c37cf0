"""The stages train and finetune."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.durable import crash_point
from prunecli.checkpoint.manifest import Manifest
from prunecli.data.splits import DataSet
from prunecli.engine.distillation import Distillation
from prunecli.engine.fit import Epoch, FitResult, fit
from prunecli.engine.freezing import FreezeBackbone
from prunecli.engine.holding import holding
from prunecli.engine.hooks import Hook
from prunecli.engine.tasks.base import Task
from prunecli.errors import RecipeError
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.fit_progress import FitProgress
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.stages.teacher import teacher_of
from prunecli.pipeline.state import DEFAULT_DATA
from prunecli.pipeline.tracked import log_path, training_log
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import FinetuneStage, TrainStage
from prunecli.report.mask_tables import label_table
from prunecli.report.numbers import fixed
from prunecli.report.scores import score_named
from prunecli.report.table import Table

_FINETUNE_LR = 0.01
_FAR = 10.0
"""A validation loss so many times that of guessing is no network that has learned little."""
_CLASSIFIED = {"segmentation": "pixels", "token-classification": "words"}
"""What of a data set's samples has classes, for tables; else they are texts."""


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

    def figures(self) -> dict[str, Any]:
        """The chosen epoch."""
        return asdict(self.chosen)

    def document(self) -> dict[str, Any]:
        """Every epoch."""
        return {
            "checkpoint": str(self.path),
            "metrics_log": str(self.metrics_path),
            "chosen_epoch": self.result.chosen,
            "epochs": [asdict(epoch) for epoch in self.result.epochs],
        }

    def tables(self) -> Sequence[Table]:
        """The chosen epoch."""
        chosen = self.chosen
        validation: Any = chosen.validation
        label = validation.score_label if validation else "score"
        rows = [
            ("epoch kept", f"{chosen.epoch} of {len(self.result.epochs)}"),
            ("training loss", fixed(chosen.loss, 4)),
            (f"validation {label}", score_named(validation.score_name).text(validation.score) if validation else "-"),
            ("validation loss", fixed(getattr(validation, "loss", None), 4)),
            ("checkpoint", str(self.path)),
            ("metrics", str(self.metrics_path)),
        ]
        return [Table(("figure", "value"), rows)]


def train_stage(space: Workspace, stage: TrainStage, out: Path, hooks: Sequence[Hook] = ()) -> TrainOutcome:
    """Trains the current network, or finetunes it, and saves it with its manifest.

    Args:
        space: The run.
        stage: How.
        out: The checkpoint to write.
        hooks: Further hooks, of whoever asks for the stage.

    Raises:
        DataError: The data cannot be used with the network.
        RecipeError: A setting is wrong.
    """
    if space.recipe.model.weights is None and space.loaded is None:
        space.use_data(DEFAULT_DATA)
    loaded = space.model()
    data = space.data()
    space.judging.check()
    split = data.training_split()
    task = space.judging.training_task()
    stage = dataclasses.replace(stage, lr=learning_rate(stage, loaded.manifest))
    _check_augmentation(space, stage, data, task)
    teacher = teacher_of(space, stage, task)
    stage = _as_resolved(stage, teacher, task)
    learned_from = {"teacher's sha256": teacher.sha256} if teacher is not None else {}
    if data.labels:
        rows = [(label.value, label.name, label.share) for label in data.labels]
        space.sink.aside(label_table(rows, _CLASSIFIED.get(data.task, "texts")))
    step = space.lineage.step(stage.stage, _settings(stage), split=split)
    train = space.inputs.training(split, stage)
    validation = space.inputs.batches(data.validation) if data.validation is not None else None
    if stage.patience is not None and validation is None:
        raise RecipeError("--patience needs validation images; use a --val-fraction over 0")
    room_for(space, out, states=True)
    with (
        saved_states(space, out, identity_of(space, stage, **learned_from)) as states,
        training_log(space, stage, out, continued=states.exists()) as log,
        space.sink.progress(stage.stage, stage.epochs * len(train)) as advance,
    ):
        amount = f"{len(split.labels)} {space.samples().noun}"
        space.sink.note(f"{stage.stage} {loaded.name} on {amount} of {data.name}, {space.device.type}")
        result = fit(
            space.judging.classifier(),
            train,
            validation,
            stage,
            space.device,
            task=task,
            seed=space.recipe.seed,
            hooks=[*_hooks(space, stage, task, teacher), *hooks],
            progress=FitProgress(space.sink, advance, "", stage.epochs, log, samples=space.batch),
            keeper=states,
            tell=space.sink.note,
        )
        space.report_bad()
        _warn_of_chance(space, task, result)
        crash_point("stage:trained")
        loaded.manifest.history.append(step.model_copy(update={"figures": _fit_figures(result)}))
        path = space.lineage.finish(loaded, out)
    return TrainOutcome(path, log_path(out), result)


def _hooks(space: Workspace, stage: TrainStage, task: Task, teacher: LoadedModel | None) -> list[Hook]:
    hooks: list[Hook] = holding(space.model().model, space.model().manifest.masks)
    if stage.freeze_backbone_epochs:
        hooks.append(FreezeBackbone(stage.freeze_backbone_epochs))
    if teacher is not None:
        assert isinstance(stage, FinetuneStage)
        network = space.judging.classifier(teacher.model)
        hooks.append(Distillation(network, task, stage.distill_weight, stage.distill_temperature))
    return hooks


def _as_resolved(stage: TrainStage, teacher: LoadedModel | None, task: Task) -> TrainStage:
    """The stage as the history tells it: what "auto" came to, and the temperature where there is a teacher."""
    if not isinstance(stage, FinetuneStage):
        return stage
    if teacher is None:
        return dataclasses.replace(stage, teacher=None)
    named = "parent" if stage.teacher == "auto" else stage.teacher
    temperature = stage.distill_temperature or task.temperature
    return dataclasses.replace(stage, teacher=named, distill_temperature=temperature)


def learning_rate(stage: TrainStage, manifest: Manifest) -> float:
    """What a stage says, else a tenth of what the network was trained with, as is usual after pruning."""
    if stage.lr is not None:
        return stage.lr
    trained = manifest.last("train")
    rate = trained.settings.get("lr") if trained is not None else None
    if trained is not None and trained.settings.get("optimizer") == stage.optimizer and isinstance(rate, (int, float)):
        return float(rate) / 10 or _FINETUNE_LR
    return _FINETUNE_LR


def _check_augmentation(space: Workspace, stage: TrainStage, data: DataSet, task: Task) -> None:
    """Refuses what would change an image and leave its labels as they are, or what does not know frames."""
    space.samples().check_augmentation(data.name, stage)
    task.check_settings(stage)


def _settings(stage: TrainStage) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(stage).items() if key != "stage"}


def _warn_of_chance(space: Workspace, task: Task, result: FitResult) -> None:
    """Says so if the epoch that is kept is far worse than guessing, which finite numbers alone do not show."""
    validation, classes = result.epochs[result.chosen - 1].validation, len(task.class_names)
    loss = validation.logged.get("loss") if validation is not None else None
    if loss is not None and classes > 1 and loss > _FAR * math.log(classes):
        space.sink.warn(
            f"the validation loss of epoch {result.chosen}, which is kept, is {loss:.3g}, and guessing has "
            f"{math.log(classes):.3g}: the training has diverged; lower the learning rate (--lr)"
        )


def _fit_figures(result: FitResult) -> dict[str, Any]:
    chosen = result.epochs[result.chosen - 1]
    figures: dict[str, Any] = {"epochs": len(result.epochs), "chosen_epoch": result.chosen, "train_loss": chosen.loss}
    if chosen.validation is not None:
        figures |= {f"validation_{name}": value for name, value in chosen.validation.logged.items()}
    return figures
