"""Whether a network still runs with about half of every group removed, and if not, where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from prunecli.copying import copied, sharing_parameters
from prunecli.inputs import Inputs, call, cast_inputs, doubled_batch
from prunecli.measure.counts import meta_copy
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.running import one_line, seeded, stack_names

RUNTIME_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError, AttributeError)


@dataclass(frozen=True)
class Problem:
    """Where a network fails without the channels of some groups, and why."""

    module: str
    reason: str


def half_of(groups: Sequence[ChannelGroup], seed: int = 0) -> dict[str, torch.Tensor]:
    """A seeded choice of about half of every group's units: no two widths agree by chance if it can be avoided."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        slack = group.units // 4
        count = group.units // 2 - (int(torch.randint(0, slack + 1, (), generator=generator)) if slack else 0)
        keep[group.name] = torch.randperm(group.units, generator=generator)[: max(1, count)].sort().values
    return keep


class Trial:
    """Runs copies of a network without some of its channels, in evaluation and in training mode.

    Nothing is computed where the network runs on the meta device, which finds the same wrong shapes.

    Args:
        model: In evaluation mode on the CPU; not changed.
        inputs: Inputs the model accepts.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model, self._inputs = model, inputs
        try:
            light = meta_copy(model)
            on_meta = cast_inputs(inputs, device="meta")
            self._run(sharing_parameters(light), on_meta, [""])
            self._model, self._inputs = light, on_meta
        except Exception:
            pass
        self._trains = True
        try:
            self._train(sharing_parameters(self._model), [""])
        except RUNTIME_ERRORS:
            self._trains = False

    def first_problem(self, groups: Sequence[ChannelGroup], keep: Keep) -> Problem | None:
        """The module that fails without the channels; None if the network runs.

        Args:
            groups: Groups to remove units from.
            keep: Kept units by group name.
        """
        trial = copied(self._model)
        try:
            remove(trial, groups, keep)
        except RUNTIME_ERRORS as error:  # not a fault of the network
            return Problem("", f"prune fails to remove its channels ({one_line(error)}); please report it")
        stack = [""]
        try:
            self._run(trial, self._inputs, stack)
        except RUNTIME_ERRORS as error:
            reason = f"the network does not run without its channels: {_where(stack)} ({one_line(error)})"
            return Problem(stack[-1], reason)
        stack = [""]
        try:
            if self._trains:
                self._train(trial, stack)
        except RUNTIME_ERRORS as error:
            reason = f"a branch that only training uses reads its channels: {_where(stack)} ({one_line(error)})"
            return Problem(stack[-1], reason)
        return None

    @staticmethod
    def _run(model: nn.Module, inputs: Inputs, stack: list[str]) -> None:
        with torch.no_grad(), seeded(), stack_names(model, stack):
            call(model, inputs)

    def _train(self, model: nn.Module, stack: list[str]) -> None:
        self._run(model.train(), doubled_batch(self._inputs), stack)


def _where(stack: Sequence[str]) -> str:
    return stack[-1] or "the model itself"
