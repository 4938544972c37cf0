"""Creating an optimizer and its schedule, and carrying one over to a smaller network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from prunecli.engine.config import FitConfig
from prunecli.errors import RecipeError

KeptPositions = Mapping[str, Mapping[int, Tensor]]
"""For each parameter name and dimension that lost positions, those that stayed, in order."""

DIVISIBLE = frozenset(
    (
        "adabelief adadelta adagrad adam adamax adamc adamw adamwlegacy adan adanw adopt adoptc adoptw lamb "
        "lambc lambcd lambcw lambw laprop lapropc larc lars lion lionc madgrad madgradw momentum nadam nadamc "
        "nadamlegacy nadamw nesterov nesterovw nlarc nlars radabelief radam radamlegacy radamw rmsprop "
        "rmsproptf rmsproptfc rmsproptfw sgd sgdc sgdw"
    ).split()
)
"""timm's optimizers that do with weights divided among processes (DTensors) what they do with whole ones, by test.

muon and nmuon came to other weights, most others raise errors, and adafactor has states of other shapes than weights.
"""


def make_optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Creates timm's optimizer of that name, without weight decay on biases and norms.

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


def make_schedule(optimizer: torch.optim.Optimizer, config: FitConfig, steps: int) -> Any:
    """timm's learning rate schedule, None for a constant rate.

    Raises:
        RecipeError: timm does not know it.
    """
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=config.schedule,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=config.lr / 100,
            min_lr=config.min_lr,
            decay_epochs=config.decay_epochs,
            decay_rate=1.0 if config.schedule == "poly" else 0.1,  # for poly it is the power, usually 1
            step_on_epochs=False,
            updates_per_epoch=steps,
        )
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise RecipeError(f"schedule {config.schedule!r}: {error}; use for instance cosine or constant") from error
    return schedule


def check_schedule(config: FitConfig) -> None:
    """Checks before any work that timm knows the optimizer and the schedule.

    Raises:
        RecipeError: It does not.
    """
    make_schedule(make_optimizer(nn.Linear(1, 1), config), config, 1)


def carry_over(optimizer: torch.optim.Optimizer, before: nn.Module, after: nn.Module, kept: KeptPositions) -> None:
    """Makes `optimizer` train `after` instead of `before`, with its moments sliced like the parameters.

    Every state tensor of a parameter's shape keeps the positions that the parameter kept, bit for bit; scalars such as
    step counts are kept. State of any other shape (factored second moments) cannot be sliced and is reset for that
    parameter.

    Args:
        optimizer: Changed in place; parameter groups, learning rates and decay stay.
        before: The network it was made for.
        after: The same network with fewer channels, or a copy.
        kept: Kept positions of `before`'s tensors; tensors that are not listed kept everything.
    """
    names = {id(parameter): name for name, parameter in before.named_parameters()}
    new = dict(after.named_parameters())
    for group in optimizer.param_groups:
        for index, old in enumerate(group["params"]):
            name = names.get(id(old))
            if name is None or name not in new:
                continue
            parameter = new[name]
            state = optimizer.state.pop(old, None)
            if state:
                moved = _sliced(state, old, kept.get(name, {}))
                if moved is not None:
                    optimizer.state[parameter] = moved
            group["params"][index] = parameter


def _sliced(state: Mapping[str, Any], old: Tensor, dims: Mapping[int, Tensor]) -> dict[str, Any] | None:
    """The state of one parameter after the removal, or None if it cannot be sliced."""
    moved: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            if value.shape != old.shape:
                if value.numel() > 1 and dims:
                    return None
                moved[key] = value
                continue
            for dim, positions in dims.items():
                value = value.index_select(dim, positions.to(value.device))
            moved[key] = value.clone() if not dims else value
        else:
            moved[key] = value
    return moved
