"""Whether a network still runs with about half of every group removed, and if not, where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunecli.copying import copied, sharing_parameters
from prunecli.errors import described
from prunecli.inputs import Inputs, call, cast_inputs, output_tensors
from prunecli.measure.counts import meta_copy
from prunecli.measure.shapes import OnlyShapes
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.running import seeded, stack_names

RUNTIME_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, AssertionError, ArithmeticError, AttributeError,
                  NameError, OSError, ImportError, StopIteration)  # fmt: skip
"""What code of a network may raise when it meets other widths."""


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
        count = max(group.multiple, count // group.multiple * group.multiple)
        keep[group.name] = torch.randperm(group.units, generator=generator)[:count].sort().values
    return keep


class Trial:
    """Runs copies of a network without some of its channels, in evaluation and in training mode.

    Nothing is computed where the network runs on the meta device, which finds the same wrong shapes.

    Args:
        model: In evaluation mode on the CPU; not changed.
        inputs: Inputs the model accepts.
        training_inputs: Inputs it accepts in training mode; None if there are none.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, training_inputs: Inputs | None) -> None:
        self._real = model, inputs, training_inputs
        self._light: tuple[nn.Module, Inputs, Inputs | None] | None = None
        with suppress(Exception):  # what cannot be copied to the meta device runs for real
            on_meta = None if training_inputs is None else cast_inputs(training_inputs, device="meta")
            self._light = meta_copy(model), cast_inputs(inputs, device="meta"), on_meta

    def first_problem(self, groups: Sequence[ChannelGroup], keep: Keep) -> Problem | None:
        """The module that fails without the channels; None if the network runs.

        Args:
            groups: Groups to remove units from.
            keep: Kept units by group name.
        """
        if self._light is not None:
            problem = self._problem(*self._light, groups, keep)
            if problem is None or self._problem(*self._light, (), {}) is None:
                return problem
            self._light = None  # the network itself does not run there
        return self._problem(*self._real, groups, keep)

    def _problem(
        self,
        model: nn.Module,
        inputs: Inputs,
        training_inputs: Inputs | None,
        groups: Sequence[ChannelGroup],
        keep: Keep,
    ) -> Problem | None:
        trial = copied(model) if groups else sharing_parameters(model)
        try:
            remove(trial, groups, keep)
        except RUNTIME_ERRORS as error:  # not a fault of the network
            return Problem("", f"prune fails to remove its channels ({described(error)}); please report it")
        stack = [""]
        try:
            self._run(trial, inputs, stack)
        except RUNTIME_ERRORS as error:
            reason = f"the network does not run without its channels: {_where(stack)} ({described(error)})"
            return Problem(stack[-1], reason)
        stack = [""]
        try:
            if training_inputs is not None:
                self._run(trial.train(), training_inputs, stack)
        except RUNTIME_ERRORS as error:
            reason = f"a branch that only training uses reads its channels: {_where(stack)} ({described(error)})"
            return Problem(stack[-1], reason)
        return None

    @staticmethod
    def _run(model: nn.Module, inputs: Inputs, stack: list[str]) -> None:
        with torch.no_grad(), seeded(), stack_names(model, stack), _light(inputs):
            call(model, inputs)


def _light(inputs: Inputs) -> AbstractContextManager[Any]:
    """What makes running cheap on the meta device."""
    return OnlyShapes() if any(tensor.is_meta for tensor in output_tensors(inputs)) else nullcontext()


def _where(stack: Sequence[str]) -> str:
    return stack[-1] or "the model itself"
