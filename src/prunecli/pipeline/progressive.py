"""Training between the steps of a pruning schedule, with one optimizer from the first step to the last."""

from __future__ import annotations

import torch

from prunecli.data.loader import Augmentation, training_batches
from prunecli.engine.fit import Epoch, FitConfig, fit, make_optimizer
from prunecli.engine.optimizer import carry_over
from prunecli.methods.structural import Transition
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage


class StepTraining:
    """Trains after every step; the optimizer's moments are sliced with the parameters, never made anew.

    Args:
        space: Data, device, seed and sink.
        stage: Epochs, learning rate and optimizer.

    Raises:
        DataError: The data cannot be used with the network.
    """

    def __init__(self, space: Workspace, stage: PruneStage) -> None:
        self._space, self._stage = space, stage
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
        )
        self._optimizer: torch.optim.Optimizer | None = None

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
        with self._space.sink.progress(title, config.epochs * len(self._batches)) as advance:
            fit(
                transition.after,
                self._batches,
                None,
                config,
                self._space.device,
                num_classes=self._classes,
                progress=_Progress(self._space, advance, title),
                optimizer=self._optimizer,
            )


class _Progress:
    """Turns what `fit` reports into a bar and lines."""

    def __init__(self, space: Workspace, advance: Advance, title: str) -> None:
        self._space, self._advance, self._title = space, advance, title

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        self._advance((epoch - 1) * steps + step, f"epoch {epoch} loss {loss:.4f}")

    def on_epoch(self, epoch: Epoch) -> None:
        self._space.sink.note(f"{self._title}, epoch {epoch.epoch}: loss {epoch.loss:.4f}, {epoch.seconds:.1f} s")
