"""Training between the steps of a pruning schedule, with one optimizer from the first step to the last."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunecli.checkpoint.runstate import StateStore
from prunecli.data.loader import Augmentation, TrainingBatches, training_batches
from prunecli.engine.fit import Epoch, FitConfig, fit
from prunecli.engine.optimizer import carry_over, make_optimizer
from prunecli.errors import Interrupted, ModelError
from prunecli.methods.structural import State, Transition
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage


class StepTraining:
    """Trains after every step; the optimizer's moments are sliced with the parameters, never made anew.

    Args:
        space: Data, device, seed and sink.
        stage: Epochs, learning rate and optimizer.
        states: Keeps the state of pruning and training together.

    Attributes:
        resume: The step to go on from, and what pruning had come to by then; None at the beginning.

    Raises:
        DataError: The data cannot be used with the network.
        ModelError: A saved state is there that is none of such a stage.
    """

    def __init__(self, space: Workspace, stage: PruneStage, states: StateStore) -> None:
        self._space, self._stage, self._states = space, stage, states
        data, section = space.data(), space.recipe.data
        space.check_classes()
        self._classes = data.num_classes
        self._batches = training_batches(
            data.training_split(),
            space.preprocessing(),
            Augmentation(data.flip),
            section.batch_size,
            seed=space.recipe.seed,
            workers=section.workers,
            bad=space.bad,
        )
        self._optimizer: torch.optim.Optimizer | None = None
        saved = states.load()
        self._training: State | None = None
        self.resume: tuple[int, State] | None = None
        if saved is not None:
            if not {"training", "step", "pruning"} <= set(saved):
                raise ModelError(f"{states.folder}: holds a state of another kind; begin anew with --force")
            self._training, self.resume = saved["training"], (saved["step"], saved["pruning"])

    def __call__(self, transition: Transition) -> None:
        """Trains the network of one step in place."""
        config = FitConfig(
            epochs=self._stage.epochs,
            lr=self._stage.lr,
            optimizer=self._stage.optimizer,
            schedule="constant",
            seed=self._space.recipe.seed + transition.step,
        )
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
                self._space.classifier(transition.after),
                _Later(self._batches, epochs_before),
                None,
                config,
                self._space.device,
                num_classes=self._classes,
                progress=_Progress(self._space, advance, title),
                optimizer=self._optimizer,
                keeper=keeper,
                tell=self._space.sink.note,
            )


class _StepKeeper:
    """Adds to the state of training what pruning has come to."""

    def __init__(self, states: StateStore, transition: Transition, training: State | None) -> None:
        self._states, self._transition, self._training = states, transition, training

    def load(self) -> State | None:
        return self._training

    def due(self) -> bool:
        return self._states.due()

    def save(self, content: State, place: str) -> bool:
        return self._states.save(self._whole(content), self._place(place))

    def interrupted(self, signal: int, content: State, place: str) -> Interrupted:
        return self._states.interrupted(signal, self._whole(content), self._place(place))

    def _whole(self, training: State) -> State:
        return {"step": self._transition.step, "pruning": self._transition.state(), "training": training}

    def _place(self, place: str) -> str:
        return f"step {self._transition.step}, {place}"


class _Later:
    """The epochs of training batches after the first `before` ones, so that no two steps see the same order."""

    def __init__(self, batches: TrainingBatches, before: int) -> None:
        self._batches, self._before = batches, before

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._batches)

    @property
    def position(self) -> int:
        return self._batches.position

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches.epoch(self._before + number, first)


class _Progress:
    """Turns what `fit` reports into a bar and lines."""

    def __init__(self, space: Workspace, advance: Advance, title: str) -> None:
        self._space, self._advance, self._title = space, advance, title

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._advance((epoch - 1) * steps + step, f"epoch {epoch} loss {loss:.4f}")

    def on_epoch(self, epoch: Epoch) -> None:
        self._space.sink.note(f"{self._title}, epoch {epoch.epoch}: loss {epoch.loss:.4f}, {epoch.seconds:.1f} s")
