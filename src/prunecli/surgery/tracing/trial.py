"""Whether a network still runs with about half of every group removed, and if not, where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, call, doubled_batch
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.running import one_line, stack_names

RUNTIME_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError, AttributeError)


@dataclass(frozen=True)
class Problem:
    """Where a network fails without the channels of some groups, and why."""

    module: str
    reason: str


def half_of(groups: Sequence[ChannelGroup], seed: int = 0) -> dict[str, torch.Tensor]:
    """A seeded choice of about half of every group's units: not exactly half, so that no two widths agree by chance."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        slack = group.units // 8
        count = group.units // 2 - (int(torch.randint(0, slack + 1, (), generator=generator)) if slack else 0)
        keep[group.name] = torch.randperm(group.units, generator=generator)[: max(1, count)].sort().values
    return keep


def first_problem(model: nn.Module, groups: Sequence[ChannelGroup], keep: Keep, inputs: Inputs) -> Problem | None:
    """The module that fails without the channels, in evaluation or in training mode; None if the network runs.

    Args:
        model: In evaluation mode on the CPU; not changed.
        groups: Groups to remove units from.
        keep: Kept units by group name.
        inputs: Inputs the model accepts.
    """
    trial = copied(model)
    try:
        remove(trial, groups, keep)
    except RUNTIME_ERRORS as error:  # not a fault of the network
        return Problem("", f"prune fails to remove its channels ({one_line(error)}); please report it")
    stack = [""]
    try:
        with torch.no_grad(), stack_names(trial, stack):
            call(trial, inputs)
    except RUNTIME_ERRORS as error:
        return Problem(stack[-1], f"the network does not run without its channels: {_where(stack)} ({one_line(error)})")
    stack = [""]
    try:
        _train(trial, inputs, stack)
    except RUNTIME_ERRORS as error:
        if _trains(model, inputs):
            reason = f"a branch that only training uses reads its channels: {_where(stack)} ({one_line(error)})"
            return Problem(stack[-1], reason)
    return None


def _where(stack: Sequence[str]) -> str:
    return stack[-1] or "the model itself"


def _train(model: nn.Module, inputs: Inputs, stack: list[str]) -> None:
    training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), stack_names(model, stack):
            call(model, doubled_batch(inputs))
    finally:
        model.train(training)


def _trains(model: nn.Module, inputs: Inputs) -> bool:
    try:
        _train(copied(model), inputs, [""])
    except RUNTIME_ERRORS:
        return False
    return True
