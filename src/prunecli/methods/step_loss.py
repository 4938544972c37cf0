"""Losses of networks that answer at every step."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunecli.engine.hooks import Batch
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, logits, run_batch
from prunecli.modes import evaluating


class LossSettings(Protocol):
    """What decides the loss."""

    @property
    def loss(self) -> str: ...
    @property
    def tet(self) -> bool: ...
    @property
    def tet_weight(self) -> float: ...
    @property
    def tet_level(self) -> float: ...


class StepLoss:
    """The task's loss, or the squared error to one-hot labels, of the mean over the steps or of every step.

    With `tet`, temporal efficient training (Deng et al., ICLR 2022): (1 - w) * mean over steps of the loss + w * mean
    squared distance of all scores to a level.

    Args:
        model: The network.
        example: Inputs that it accepts.
        settings: Which loss.

    Raises:
        MethodError: With `tet`: no module returns scores by step.
    """

    def __init__(self, model: nn.Module, example: Inputs, settings: LossSettings) -> None:
        self._settings, self._steps = settings, list[Tensor]()
        self._module = _with_steps(model, example) if settings.tet else None
        self._hook: Any = None

    def begin(self) -> None:
        """Begins to take in scores by step."""
        if self._module is not None:
            self._hook = self._module.register_forward_hook(self._take)

    def end(self) -> None:
        """Stops."""
        if self._hook is not None:
            self._hook.remove()

    def __call__(self, loss: Tensor, batch: Batch) -> Tensor:
        """The loss instead of the task's, or that one."""
        settings = self._settings
        if self._module is None:
            if settings.loss == "ce":
                return loss
            return batch.weighted(_squared_error(batch.outputs, batch.labels), len(batch.labels))
        steps, self._steps = self._steps.pop(), []
        labels = batch.labels.repeat(len(steps), *(1,) * (batch.labels.dim() - 1))
        flat = steps.flatten(0, 1)
        of_steps = functional.cross_entropy(flat, labels) if settings.loss == "ce" else _squared_error(flat, labels)
        level = functional.mse_loss(steps, torch.full_like(steps, settings.tet_level))
        return batch.weighted((1 - settings.tet_weight) * of_steps + settings.tet_weight * level, len(batch.labels))

    def _take(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training:
            self._steps = [output]


def _squared_error(scores: Tensor, labels: Tensor) -> Tensor:
    wanted = labels if labels.is_floating_point() else functional.one_hot(labels, scores.shape[1]).to(scores)
    return functional.mse_loss(scores, wanted)


def _with_steps(model: nn.Module, example: Inputs) -> nn.Module:
    """The last module that returns scores (T, N, classes) of which the network returns the mean."""
    outputs: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 3:  # steps, samples, classes
            outputs.append((module, output))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad(), evaluating(model):
            scores = logits(run_batch(model, example))
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(outputs):
        mean = output.mean(dim=0)
        if mean.shape == scores.shape and torch.allclose(mean, scores, rtol=1e-4, atol=1e-6):
            return module
    raise MethodError("--tet needs a network that answers at every step; leave it out")
