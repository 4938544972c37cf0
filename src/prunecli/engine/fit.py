"""The one training loop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunecli import ranks
from prunecli.checkpoint.durable import crash_point
from prunecli.engine.carrying import Carrier
from prunecli.engine.config import FitConfig
from prunecli.engine.device import channels_last, move_batch, seed_everything
from prunecli.engine.divergence import require_finite_loss
from prunecli.engine.divided import placed, placed_by_name, placed_states
from prunecli.engine.evaluate import evaluate
from prunecli.engine.explosion import ExplosionWatch
from prunecli.engine.hooks import Batch, Hook, State, Training
from prunecli.engine.mixing import Mixing
from prunecli.engine.optimizer import make_optimizer, make_schedule
from prunecli.engine.replicas import Replicas, tensors_of
from prunecli.engine.resources import resource_errors
from prunecli.engine.resuming import (
    Checkpoint,
    Keeper,
    Position,
    StopRequest,
    batches_of,
    figures_from_state,
    figures_to_state,
    random_state,
    seed_apart,
    set_random_state,
    stop_requests,
)
from prunecli.engine.sharding import replicas_of
from prunecli.engine.tasks.base import Figures, Task
from prunecli.errors import DivergedError, RecipeError
from prunecli.inputs import map_tensors, sample_count
from prunecli.report.table import Table


class SizedBatches(Sized, Protocol):
    """A sized iterable of (inputs, labels)."""

    def __iter__(self) -> Any:
        """Yields (inputs, labels)."""
        ...


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
    """The result of training: every epoch, and the number of the epoch whose weights the model now has."""

    epochs: tuple[Epoch, ...]
    chosen: int


class Progress(Protocol):
    """Receives the progress of a training run."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After each optimizer step."""
        ...

    def on_epoch(self, epoch: Epoch, tables: Sequence[Table]) -> None:
        """After each epoch, with the tables of the hooks."""
        ...


def fit(
    model: nn.Module,
    train: SizedBatches,
    validation: SizedBatches | None,
    config: FitConfig,
    device: torch.device,
    *,
    task: Task,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    progress: Progress | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    keeper: Keeper | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> FitResult:
    """Trains `model` in place and leaves it with the weights of the best validation epoch (the last without one).

    Several processes (see `prunecli.ranks`) share every batch and average their gradients, so settings mean what they
    mean for one process. Batch normalisations measure each process's own share; see `replicas.Statistics`. With
    `config.sharding` they divide the network, which is on the CPU afterwards, and stays divided after an error.

    Args:
        model: Returns what `task` expects, mostly scores.
        train: Training batches: pairs of inputs (a tensor, tuple, mapping or list) and labels; see `Carrier`.
        validation: Held-out batches for choosing the best epoch and stopping early.
        config: Hyperparameters. Augmentation settings are not used here; they belong to whoever makes `train`.
        device: Where to train.
        task: Loss and figures.
        seed: Seed of everything random.
        hooks: Hooks, called in this order.
        progress: Told about steps and epochs.
        optimizer: An optimizer to continue with, including its moments; the schedule sets its learning rate.
        keeper: Keeps states of the run, from which it resumes bit by bit if `train` has `epoch(number, first)`. With
            one, Ctrl-C and SIGTERM end the run after the current step.
        tell: Told when such a signal arrives, and warned once if the loss explodes.

    Raises:
        RecipeError: timm does not know the optimizer or schedule, or a hook cannot be used with the model.
        DivergedError: The loss or the weights are no longer finite.
        ModelError: A saved state does not fit.
        Interrupted: A signal came; the state is saved.
        ResourceError: Memory ran out, or a process that loads images died.
        RankLost: Another process is gone.
        RanksDiffer: Two processes have different weights at the end of an epoch.
    """
    seed_everything(seed)
    hooks = (ExplosionWatch(tell), *hooks)
    replicas = replicas_of(model, config, device, task, train, hooks, optimizer, tell)
    run = _Run(model, train, config, device, optimizer, task, hooks, seed, replicas)
    seed_apart(seed, ranks.rank())
    listening = stop_requests(tell) if keeper is not None else nullcontext(StopRequest())
    with channels_last(model), listening as stop:
        checkpoint = Checkpoint(run, keeper, stop)
        checkpoint.restore()
        while not run.finished():
            run.next_epoch(train, validation, progress, checkpoint)
        checkpoint.stop()
    if ranks.together():
        set_random_state(ranks.from_first(random_state(device)), device)
    return run.result()


class _Run:
    """Optimizer, schedule, loss and hooks of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        train: SizedBatches,
        config: FitConfig,
        device: torch.device,
        optimizer: torch.optim.Optimizer | None,
        task: Task,
        hooks: Sequence[Hook],
        seed: int,
        replicas: Replicas,
    ) -> None:
        self.model, self._seed, self.config, self.device = model, seed, config, device
        self.task, self._hooks, self._replicas = task, hooks, replicas
        steps = math.ceil(len(train) / config.accumulate)
        self._optimizer = optimizer if optimizer is not None else make_optimizer(model, config)
        self._schedule = make_schedule(self._optimizer, config, steps)
        num_classes = len(task.class_names)
        self._mixing = Mixing(config, num_classes)
        self._amp_dtype = None
        if config.amp and device.type == "cuda":
            self._amp_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self._carrier = Carrier(train)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._amp_dtype is torch.float16)
        self._updates, self._lr = 0, config.lr
        self.position = Position()
        self._history: list[Epoch] = []
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        names = [hook.name for hook in hooks]
        for name in names:
            if names.count(name) > 1:  # one state would overwrite the other
                raise RecipeError(f"two training hooks are named {name!r}; their states need different names")
        training = Training(model, self._optimizer, device, config.epochs, steps, num_classes, train)
        for hook in hooks:
            hook.begin(training)

    def next_epoch(
        self, train: SizedBatches, validation: SizedBatches | None, progress: Progress | None, checkpoint: Checkpoint
    ) -> None:
        """Trains for an epoch, or the rest of one, and validates."""
        with resource_errors(getattr(train, "batch_size", None)):
            loss = self._epoch(train, progress, checkpoint)
        figures = None
        if validation is not None:
            figures = evaluate(self.model, validation, self.device, lambda done: checkpoint.stop(), task=self.task)
            require_finite_loss(figures, self.position)
        entry = self._close_epoch(loss, figures)
        self._replicas.require_same(f"the network after epoch {entry.epoch}")
        crash_point("fit:epoch")
        if progress is not None:
            progress.on_epoch(entry, [table for hook in self._hooks for table in hook.tables()])
        checkpoint.agree()
        checkpoint()

    def _epoch(self, batches: SizedBatches, progress: Progress | None, checkpoint: Checkpoint) -> float:
        """Runs the remaining batches of the epoch and returns the mean loss."""
        self.model.train()
        here = self.position
        if here.batch == 0:
            self._carrier.forget()
        for hook in self._hooks:
            hook.epoch_start(here.epoch, here.batch)
        self._replicas.start()
        start = time.perf_counter() - here.seconds
        last = len(batches) - 1
        group: int | None = None  # of batches that make one step, while it is open

        def close(done: int) -> None:
            self._step()
            here.batch, here.seconds = done, time.perf_counter() - start
            crash_point("fit:step")
            if progress is not None:
                progress.on_step(here.epoch, done, last + 1, here.loss / here.images)
            checkpoint()

        for count, (inputs, labels) in enumerate(batches_of(batches, here.epoch, here.batch), start=here.batch + 1):
            # Batches without a single readable image are skipped but still counted.
            index = getattr(batches, "position", count) - 1
            if group is not None and group != index // self.config.accumulate:
                close(index)
            group = index // self.config.accumulate
            counts = getattr(batches, "counts", True)
            with self._replicas.running():
                loss = self._loss(inputs, labels, counts)
            own = sample_count(inputs) if counts else 0
            value, samples = checkpoint.agree(loss.item(), own)
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss is {value} at epoch {here.epoch}, batch {index + 1}; lower the learning rate (--lr)"
                )
            closing = (index + 1) % self.config.accumulate == 0 or index == last
            self._replicas.see(own, closing=closing)
            self._scaler.scale(loss / self.config.batches_in_step(index, last)).backward()  # type: ignore[no-untyped-call]
            here.loss += value * samples
            here.images += samples
            if closing:
                close(index + 1)
                group = None
        if group is not None:
            close(last + 1)
        self.require_finite()
        self._replicas.stop()
        for hook in self._hooks:
            hook.epoch_end(here.epoch)
        return here.loss / max(here.images, 1)

    def _close_epoch(self, loss: float, figures: Figures | None) -> Epoch:
        """Records the epoch and moves on to the next."""
        here = self.position
        score = figures.score if figures is not None else None
        for hook in self._hooks:
            score = hook.score(here.epoch, score) if score is not None else None
        improved, best = score is not None, self._best
        if score is not None and best is not None:
            improved = self.task.improves(score, figures, best[0], self._history[best[1] - 1].validation)
        if score is not None and improved:
            self._best = (score, here.epoch, copy.deepcopy(self.model.state_dict()))
        entry = Epoch(here.epoch, self._lr, loss, figures, improved or figures is None, here.seconds)
        self._history.append(entry)
        self.position = Position(epoch=here.epoch + 1)
        return entry

    def finished(self) -> bool:
        """Whether all epochs are done, or validation has not improved for too long."""
        done, patience = len(self._history), self.config.patience
        if done >= self.config.epochs or patience is None or self._best is None:
            return done >= self.config.epochs
        kept = [entry for entry in self._history if entry.best and entry.validation is not None]
        # Epochs with the same score and a lower loss are kept, but they are no reason to go on.
        first = next(entry for entry in kept if entry.validation.score == kept[-1].validation.score)  # type: ignore[union-attr]
        return done - first.epoch >= patience

    def result(self) -> FitResult:
        """Loads the weights of the best epoch into the model."""
        if self._best is not None:
            self.model.load_state_dict(self._best[2])
        for hook in self._hooks:
            hook.end()
        self._replicas.end()
        self.model.eval()
        return FitResult(tuple(self._history), self._best[1] if self._best is not None else len(self._history))

    def require_finite(self) -> None:
        """Raises an error before NaN or infinite weights are saved or evaluated."""
        self._replicas.require_finite(self.position)

    def state(self) -> State:
        """Returns everything that determines how training continues; see `prunecli.engine.resuming`."""
        return self._replicas.saved(
            {
                "position": asdict(self.position),
                "history": [
                    vars(entry) | {"validation": figures_to_state(entry.validation)} for entry in self._history
                ],
                "best": self._best,
                "model": tensors_of(self.model),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict() if self._schedule is not None else None,
                "scaler": self._scaler.state_dict(),
                "updates": self._updates,
                "memory": self._carrier.state(),
                "lr": self._lr,
                "random": random_state(self.device),
                "hooks": {hook.name: hook.state() for hook in self._hooks},
                "others": ranks.gathered(self._own_state())[1:],
            }
        )

    def _own_state(self) -> State:
        """What differs between processes; nothing where there is one alone."""
        if not ranks.together():
            return {}
        hooks = {hook.name: hook.state() for hook in self._hooks if hook.per_process}
        own: State = {"random": random_state(self.device), "memory": self._carrier.state(), "hooks": hooks}
        return map_tensors(own, Tensor.cpu)  # type: ignore[no-any-return]

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        with torch.no_grad():
            for name, tensor in tensors_of(self.model).items():
                tensor.copy_(placed(state["model"][name], tensor))
        self._optimizer.load_state_dict(placed_states(state["optimizer"], self._optimizer))
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._updates, self._lr = state["updates"], state["lr"]
        self.position = Position(**state["position"])
        self._history = [
            Epoch(**(entry | {"validation": figures_from_state(entry["validation"], self.task.figures)}))
            for entry in state["history"]
        ]
        if state["best"] is not None:
            score, epoch, weights = state["best"]
            self._best = score, epoch, placed_by_name(weights, self.model.state_dict())
        self._restore_own(state)

    def _restore_own(self, state: State) -> None:
        """Restores what differs between processes, by rank; of as many others there is only what they had in common.

        The random numbers of further processes begin anew then, and a text goes on without what was remembered of it.
        """
        states = [state, *state.get("others", [])]
        same = len(states) == ranks.world_size()
        own = states[ranks.rank()] if same else states[0]
        self._carrier.restore(own["memory"] if same else None)
        for hook in self._hooks:
            known = [each["hooks"][hook.name] for each in states if each is state or hook.name in each["hooks"]]
            hook.restore(known[ranks.rank() if hook.per_process else 0] if same else hook.merged(known))
        set_random_state(own["random"], self.device)
        if not same:
            seed_apart(self._seed, ranks.rank(), self._updates)

    def _step(self) -> None:
        self._replicas.join()
        self._scaler.unscale_(self._optimizer)
        if self.config.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        for hook in self._hooks:
            hook.before_step()
        self._lr = float(self._optimizer.param_groups[-1]["lr"])
        self._scaler.step(self._optimizer)
        self._scaler.update()
        for hook in self._hooks:
            hook.after_step()
        self._optimizer.zero_grad(set_to_none=True)
        self._updates += 1
        if self._schedule is not None:
            self._schedule.step_update(num_updates=self._updates)

    def _loss(self, inputs: Any, labels: Any, counts: bool) -> Tensor:
        labels = map_tensors(labels, lambda tensor: tensor.to(self.device, non_blocking=True))
        inputs = move_batch(inputs, self.device, torch.channels_last)
        inputs, labels = self._mixing(inputs, labels)
        context: AbstractContextManager[object] = nullcontext()
        if self._amp_dtype is not None:
            context = torch.autocast(self.device.type, dtype=self._amp_dtype)
        with context:
            outputs = self.task.outputs(self._carrier, self.model, inputs, labels)
            batch = Batch(inputs, labels, outputs, counts)
            loss = self.task.loss(outputs, labels, self.config.label_smoothing)
            if ranks.together():
                loss = batch.weighted(loss, self.task.terms(outputs, labels))
            for hook in self._hooks:
                loss = hook.loss(loss, batch)
        return loss
