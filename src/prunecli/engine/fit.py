"""The one training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from prunecli.engine.device import channels_last, seed_everything
from prunecli.engine.evaluate import evaluate
from prunecli.engine.freezing import FrozenBackbone
from prunecli.engine.tasks import Classification, Figures, Task
from prunecli.errors import PruneError, RecipeError
from prunecli.measure.forward import logits


class SizedBatches(Sized, Protocol):
    """Batches of images and labels whose number is known."""

    def __iter__(self) -> Any:
        """Yields (images, labels)."""
        ...


@dataclass(frozen=True)
class FitConfig:
    """How to train. Optimizers and schedules are timm's, by their names there.

    The backbone is held still for the first `freeze_backbone_epochs` (see `FrozenBackbone`).
    """

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: int = 0
    min_lr: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad: float | None = None
    accumulate: int = 1
    amp: bool = True
    freeze_backbone_epochs: int = 0
    patience: int | None = None
    seed: int = 0
    distill_weight: float = 0.5
    distill_temperature: float = 4.0


@dataclass(frozen=True)
class Epoch:
    """Figures of one epoch; validation figures are None without a validation split."""

    epoch: int
    lr: float
    loss: float
    validation: Figures | None
    best: bool
    seconds: float


@dataclass(frozen=True)
class FitResult:
    """What training came to: every epoch, and the number of the one whose weights the model now has."""

    epochs: tuple[Epoch, ...]
    chosen: int


class Progress(Protocol):
    """What a caller may want to know while training runs."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After each optimizer step."""
        ...

    def on_epoch(self, epoch: Epoch) -> None:
        """After each epoch."""
        ...


def fit(
    model: nn.Module,
    train: SizedBatches,
    validation: SizedBatches | None,
    config: FitConfig,
    device: torch.device,
    *,
    num_classes: int,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    task: Task | None = None,
) -> FitResult:
    """Trains `model` in place and leaves it with the weights of the best validation epoch (the last without one).

    With a teacher the loss is (1 - w) CE + w T^2 KL(teacher || student) at temperature T (Hinton et al., 2015).

    Args:
        model: Returns class scores as `task` wants them.
        train: Training batches.
        validation: Held-out batches that best epoch and early stop are chosen on.
        config: Hyper-parameters.
        device: Where to train.
        num_classes: Number of classes, for soft targets.
        teacher: A network to learn from beside the labels; not changed.
        progress: Told about steps and epochs.
        optimizer: One that goes on, moments and all, instead of a new one; its learning rate is set by the schedule.
        task: Loss and figures; default: classification.

    Raises:
        RecipeError: timm does not know the optimizer or schedule, or there is no backbone to freeze.
        PruneError: The loss is no longer finite.
    """
    seed_everything(config.seed)
    model.to(device)
    task = task or Classification()
    run = _Run(model, train, config, device, num_classes, teacher, optimizer, task)
    frozen = FrozenBackbone(model, num_classes) if config.freeze_backbone_epochs else None
    history: list[Epoch] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    with channels_last(model):
        for number in range(1, config.epochs + 1):
            start = time.perf_counter()
            if frozen is not None and number > config.freeze_backbone_epochs:
                frozen.release()
                frozen = None
            loss = run.epoch(number, train, progress, frozen)
            figures = evaluate(model, validation, device, task=task) if validation is not None else None
            improved = figures is not None and (best is None or figures.score > best[0])
            if figures is not None and improved:
                best = (figures.score, number, copy.deepcopy(model.state_dict()))
            entry = Epoch(number, run.lr, loss, figures, improved or figures is None, time.perf_counter() - start)
            history.append(entry)
            if progress is not None:
                progress.on_epoch(entry)
            if config.patience is not None and best is not None and number - best[1] >= config.patience:
                break
    if frozen is not None:
        frozen.release()
    if best is not None:
        model.load_state_dict(best[2])
    model.eval()
    return FitResult(tuple(history), best[1] if best is not None else len(history))


def make_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """timm's optimizer of that name, without weight decay on biases and norms.

    Raises:
        RecipeError: timm does not know it.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (ValueError, AssertionError, KeyError) as error:
        text = f"optimizer {config.optimizer!r} is unknown to timm; use for instance sgd or adamw"
        raise RecipeError(text) from error
    return optimizer


class _Run:
    """Optimizer, schedule and loss of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        train: SizedBatches,
        config: FitConfig,
        device: torch.device,
        num_classes: int,
        teacher: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        task: Task,
    ) -> None:
        self.model, self.config, self.device, self.task = model, config, device, task
        self.teacher = teacher.to(device).eval() if teacher is not None else None
        self._steps = math.ceil(len(train) / config.accumulate)
        self._optimizer = optimizer if optimizer is not None else make_optimizer(model, config)
        try:
            self._schedule, _ = create_scheduler_v2(
                self._optimizer,
                sched=config.schedule,
                num_epochs=config.epochs,
                warmup_epochs=config.warmup_epochs,
                warmup_lr=config.lr / 100,
                min_lr=config.min_lr,
                decay_rate=1.0 if config.schedule == "poly" else 0.1,  # of poly it is the power, and 1 is usual
                step_on_epochs=False,
                updates_per_epoch=self._steps,
            )
        except (ValueError, AssertionError, KeyError, RuntimeError) as error:
            raise RecipeError(f"schedule {config.schedule!r}: {error}; use for instance cosine or constant") from error
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )
        self._amp_dtype = None
        if config.amp and device.type == "cuda":
            self._amp_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._amp_dtype is torch.float16)
        self._updates = 0
        self._lr = config.lr

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return self._lr

    def epoch(
        self, number: int, batches: SizedBatches, progress: Progress | None, frozen: FrozenBackbone | None
    ) -> float:
        """Goes through the batches once, with `frozen` held still; returns the mean loss."""
        self.model.train()
        if frozen is not None:
            frozen.hold()
        total = 0.0
        images_seen = 0
        last = len(batches) - 1
        for index, (images, labels) in enumerate(batches):
            count = len(labels)
            loss = self._loss(images, labels)
            value = loss.item()
            if not math.isfinite(value):
                raise PruneError(
                    f"the loss is {value} at epoch {number}, batch {index + 1}; lower the learning rate (--lr)"
                )
            self._scaler.scale(loss / self._batches_in_step(index, last)).backward()  # type: ignore[no-untyped-call]
            total += value * count
            images_seen += count
            if (index + 1) % self.config.accumulate == 0 or index == last:
                self._step()
                if progress is not None:
                    progress.on_step(number, index + 1, last + 1, total / images_seen)
        return total / max(images_seen, 1)

    def _batches_in_step(self, index: int, last: int) -> int:
        """Batches whose gradients are averaged in the step that `index` belongs to; the last step may have fewer."""
        first = index - index % self.config.accumulate
        return min(self.config.accumulate, last - first + 1)

    def _step(self) -> None:
        if self.config.clip_grad is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self._lr = float(self._optimizer.param_groups[-1]["lr"])
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1
        if self._schedule is not None:
            self._schedule.step_update(num_updates=self._updates)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        labels = labels.to(self.device, non_blocking=True)
        layout = torch.channels_last if images.dim() == 4 else torch.contiguous_format
        images = images.to(self.device, non_blocking=True, memory_format=layout)
        if self._mixup is not None and len(labels) > 1:
            even = len(labels) // 2 * 2  # timm mixes images in pairs
            images, labels = self._mixup(images[:even], labels[:even])
        context: AbstractContextManager[object] = nullcontext()
        if self._amp_dtype is not None:
            context = torch.autocast(self.device.type, dtype=self._amp_dtype)
        with context:
            scores = logits(self.model(images))
            loss = self.task.loss(scores, labels, self.config.label_smoothing)
            if self.teacher is None or self.config.distill_weight == 0:
                return loss
            with torch.no_grad():
                wanted = logits(self.teacher(images))
            temperature, weight = self.config.distill_temperature, self.config.distill_weight
            divergence = self.task.divergence(scores, wanted, temperature)
            return (1 - weight) * loss + weight * temperature**2 * divergence
