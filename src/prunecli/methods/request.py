"""The request that a structural method receives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from prunecli.criteria.base import Calibration, Criterion, Loss, default_loss
from prunecli.engine.hooks import State
from prunecli.engine.optimizer import KeptPositions
from prunecli.inputs import Inputs
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.methods.score_memory import ScoreMemory
from prunecli.surgery.removal.compensate import Compensation
from prunecli.surgery.tracing.traced import Trace


@dataclass(frozen=True)
class Transition:
    """One step of a schedule, for code that trains between steps.

    Attributes:
        before: The network before the step.
        after: The network after it, to be trained in place.
        kept: Kept positions of `before`'s tensors; `prunecli.engine.optimizer.carry_over` uses them.
        step: Number of the step, from 1.
        steps: How many there are.
        state: Returns the state needed to resume after this step, as plain data and tensors;
            `PruneRequest.resume` takes it, together with `step`.
    """

    before: nn.Module
    after: nn.Module
    kept: KeptPositions
    step: int
    steps: int
    state: Callable[[], State] = dict


Recover = Callable[[Transition], None]
"""Trains `Transition.after` in place."""


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """One request, from the Python interface or the command line down to the method.

    Attributes:
        method: Name of a method.
        params: An instance of that method's parameter dataclass.
        example_inputs: Inputs the network accepts.
        keep: Layer names or shell patterns whose output width stays.
        seed: Seed of methods that draw random numbers.
        calibration: Batches that can be iterated more than once, inputs or (inputs, labels), for methods that look at
            data; None leaves compensation and recalibration out too.
        compensation: How removed channels are folded into those that stay, after verification.
        recalibrate: Whether batch normalisation statistics are measured again; None: if held-out batches gain by it.
        loss: The loss whose gradients methods take.
        recover: Called after every step of a schedule, to train.
        resume: A step and its `Transition.state`: earlier steps and the removal of this step are not repeated.
        trace: An earlier trace of the network, made with the same example inputs.
        memory: Scores of earlier requests, which are not computed again.
    """

    method: str
    params: StructuralParams
    example_inputs: Inputs
    keep: Sequence[str] = ()
    seed: int = 0
    calibration: Iterable[Any] | None = None
    compensation: Compensation = "none"
    recalibrate: bool | None = True
    loss: Loss = default_loss
    recover: Recover | None = None
    resume: tuple[int, State] | None = None
    trace: Trace | None = field(default=None, repr=False)
    memory: ScoreMemory | None = field(default=None, repr=False)

    def criterion(self) -> Criterion:
        """What scores, which looks into the memory first."""
        criterion: Criterion = get_structural(self.method).load()
        return criterion if self.memory is None else self.memory.remembering(self.method, criterion)

    def calibrated(self) -> Calibration:
        """Calibration for criteria, with a generator seeded with `seed`."""
        return Calibration(
            generator=torch.Generator().manual_seed(self.seed),
            batches=self.calibration,
            loss=self.loss,
            options=asdict(self.params),
            example_inputs=self.example_inputs,
        )
