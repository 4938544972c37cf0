"""Training between the steps of a pruning schedule, with one optimizer from the first step to the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from prunecli.checkpoint.runstate import StateStore
from prunecli.data.loader import TrainingBatches
from prunecli.data.token_batches import StreamBatches
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.holding import holding
from prunecli.engine.hooks import State
from prunecli.engine.optimizer import carry_over, make_optimizer
from prunecli.engine.tracking import MetricsLog
from prunecli.errors import Interrupted, ModelError
from prunecli.methods.request import Transition
from prunecli.pipeline.fit_progress import FitProgress
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage


class StepTraining:
    """Trains after every step; the optimizer's moments are sliced with the parameters, never created again.

    Args:
        space: Data, device, seed and sink.
        stage: Epochs, learning rate and optimizer.
        states: Keeps the state of pruning and training together.
        log: Gets a row for each epoch of all steps.

    Attributes:
        masks: What is held at zero while it trains.
        resume: The step to resume at and the state of pruning at that point; None for a fresh start.

    Raises:
        DataError: The data cannot be used with the network.
        ModelError: The saved state belongs to another kind of stage.
    """

    def __init__(self, space: Workspace, stage: PruneStage, states: StateStore, log: MetricsLog) -> None:
        self._space, self._states, self._log = space, states, log
        self._config = FitConfig(epochs=stage.epochs, lr=stage.lr, optimizer=stage.optimizer, schedule="constant")
        self.masks = space.model().manifest.masks
        space.judging.check()
        self._task = space.judging.training_task()
        self._batches = space.inputs.training(space.data().training_split())
        self._optimizer: torch.optim.Optimizer | None = None
        saved = states.load()
        self._training: State | None = None
        self.resume: tuple[int, State] | None = None
        if saved is not None:
            if not {"training", "step", "pruning"} <= set(saved):
                raise ModelError(f"{states.folder}: holds a state of another kind of stage; start again with --force")
            self._training, self.resume = saved["training"], (saved["step"], saved["pruning"])

    def forget_moments(self) -> None:
        """Makes the next step begin with a new optimizer."""
        self._optimizer = None

    def __call__(self, transition: Transition) -> None:
        """Trains the network of one step in place."""
        config = self._config
        if self._optimizer is None:
            self._optimizer = make_optimizer(transition.after, config)
        else:
            carry_over(self._optimizer, transition.before, transition.after, transition.kept)
        title = f"step {transition.step}/{transition.steps}"
        keeper = _StepKeeper(self._states, transition, self._training)
        self._training = None
        epochs_before = (transition.step - 1) * config.epochs
        with self._space.sink.progress(title, config.epochs * len(self._batches)) as advance:
            fit(
                self._space.judging.classifier(transition.after),
                _LaterEpochs(self._batches, epochs_before),
                None,
                config,
                self._space.device,
                task=self._task,
                seed=self._space.recipe.seed + transition.step,
                hooks=holding(transition.after, self.masks),
                progress=FitProgress(
                    self._space.sink, advance, title, config.epochs, self._log, epochs_before, samples=self._space.batch
                ),
                optimizer=self._optimizer,
                keeper=keeper,
                tell=self._space.sink.note,
            )


class _StepKeeper:
    """Adds the state of pruning to the state of training."""

    def __init__(self, states: StateStore, transition: Transition, training: State | None) -> None:
        self._states, self._transition, self._training = states, transition, training

    def load(self) -> State | None:
        return self._training

    def due(self) -> bool:
        return self._states.due()

    def save(self, content: State, position: str) -> bool:
        return self._states.save(self._with_pruning(content), self._at_step(position))

    def interrupted(self, signal: int, content: State, position: str) -> Interrupted:
        return self._states.interrupted(signal, self._with_pruning(content), self._at_step(position))

    def _with_pruning(self, training: State) -> State:
        return {"step": self._transition.step, "pruning": self._transition.state(), "training": training}

    def _at_step(self, position: str) -> str:
        return f"step {self._transition.step}, {position}"


class _LaterEpochs:
    """The epochs of training batches after the first `before` ones, so that no two steps see the same order."""

    def __init__(self, batches: TrainingBatches | StreamBatches, before: int) -> None:
        self._batches, self._before = batches, before

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)

    @property
    def contiguous(self) -> bool:
        """Whether a network carries on from batch to batch."""
        return bool(getattr(self._batches, "contiguous", False))

    @property
    def position(self) -> int:
        return self._batches.position

    @property
    def counts(self) -> bool:
        """Whether the last batch is this process's own, and not one that stands in."""
        return bool(getattr(self._batches, "counts", True))

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]:
        return self._batches.epoch(self._before + number, first)
