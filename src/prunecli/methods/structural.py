"""The flow of every method that removes channels: trace, score, allocate, remove, verify, compensate, recalibrate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Edit, Untouched
from prunecli.criteria.base import Calibration, Criterion, Loss, default_loss
from prunecli.errors import MethodError, ModelError, VerificationError
from prunecli.inputs import Inputs
from prunecli.methods.allocation import Allocation, Demand, allocate
from prunecli.methods.params import StructuralParams
from prunecli.methods.repair import Clock, Repair
from prunecli.methods.schedule import amounts
from prunecli.methods.selection import apply_patterns, hold_residual, ratios_by_group, with_scope
from prunecli.methods.targets import Ruler, Target, TargetKind, target_of
from prunecli.surgery.groups import ChannelGroup, Trace
from prunecli.surgery.proof.verify import faulty_groups, verify
from prunecli.surgery.removal.compensate import Compensation
from prunecli.surgery.removal.rebuild import apply_attributes, assign_tensors, attribute_differences, state_tensors
from prunecli.surgery.removal.slice import Kept, kept_positions, remove
from prunecli.surgery.tracing.search import Assumptions
from prunecli.surgery.tracing.trace import trace, without

State = dict[str, Any]
"""Plain data and tensors, from which a schedule goes on after a step."""
_NOTHING = "the model has no convolution or linear layer"


@dataclass(frozen=True)
class Transition:
    """What one step of a schedule did, for whoever trains between the steps.

    Attributes:
        before: The network before the step.
        after: The network after it, to be trained in place.
        kept: What `before`'s tensors kept; with it `prunecli.engine.optimizer.carry_over` slices an optimizer.
        step: Number of the step, from 1.
        steps: How many there are.
        state: Gives what pruning has to remember to go on from here, as plain data and tensors; `prune_structural`
            takes it as `resume`, together with `step`.
    """

    before: nn.Module
    after: nn.Module
    kept: Kept
    step: int
    steps: int
    state: Callable[[], State] = dict


Recover = Callable[[Transition], None]
"""Trains `Transition.after` in place."""


@dataclass(frozen=True)
class StructuralOutcome:
    """A pruned model with everything that was decided on the way.

    Attributes:
        model: The smaller network; the original is unchanged.
        edits: One entry per step and group that lost channels.
        untouched: Every layer that kept its width or was held back, with the reason.
        requested: Share of prunable channels that was to be removed.
        achieved: Share that was removed.
        verify_error: Largest relative difference to the masked original in float64, over all steps.
        compensated: Number of layers into which removed channels were folded, in the last step that removed any.
        recalibrated: Number of batch normalisations whose statistics were measured anew in that step.
        seconds: Wall time by phase.
        scope: How channels competed.
        steps: Steps of the schedule.
        target: The figure that was aimed at, if it was not the ratio, with what was reached.
        trace: Groups and frozen layers of the last step.
    """

    model: nn.Module
    edits: list[Edit]
    untouched: list[Untouched]
    requested: float
    achieved: float
    verify_error: float
    compensated: int
    recalibrated: int
    seconds: dict[str, float]
    scope: str = "global"
    steps: int = 1
    target: Target | None = None
    trace: Trace = field(default_factory=lambda: Trace(groups=()))


def prune_structural(
    model: nn.Module,
    example_inputs: Inputs,
    criterion: Criterion,
    params: StructuralParams,
    *,
    keep_patterns: Sequence[str] = (),
    seed: int = 0,
    calibration: Iterable[Any] | None = None,
    compensation: Compensation = "none",
    recalibrate: bool = True,
    loss: Loss = default_loss,
    recover: Recover | None = None,
    resume: tuple[int, State] | None = None,
) -> StructuralOutcome:
    """Removes the least important channels of a copy of `model`.

    Args:
        model: Any module; not changed.
        example_inputs: Inputs the model accepts.
        criterion: Ranks units; see `prunecli.criteria.base`.
        params: How much to remove, where, and in how many steps.
        keep_patterns: Layer names or shell patterns whose output width must stay.
        seed: Seeds criteria that draw random numbers.
        calibration: Batches that can be gone through more than once, each an input tensor or (inputs, labels), for
            criteria that look at data and for the two steps below; None leaves those out.
        compensation: How removed channels are folded into those that stay, after verification.
        recalibrate: Whether batch normalisation statistics are measured anew.
        loss: What criteria take gradients of.
        recover: Called after every step, to train.
        resume: A step and the `Transition.state` of it: steps before it are not done again, its own removal neither.

    Raises:
        MethodError: A pattern matches no layer, settings exclude each other, or nothing can be removed.
        VerificationError: The result is not the masked original; nothing is returned.
    """
    target = target_of(params)
    if params.schedule == "once" and (params.steps != StructuralParams.steps or params.initial_ratio is not None):
        raise MethodError("--steps and --initial-ratio belong to a schedule; add --schedule linear, cubic or ramp")
    clock = Clock()
    given = Calibration(torch.Generator().manual_seed(seed), calibration, loss, asdict(params))
    run = _Run(
        model,
        example_inputs,
        keep_patterns,
        with_scope(model, params),
        target,
        lambda network, live: criterion(network, live, given),
        clock,
        partial(Ruler, batches=calibration, compensation=compensation, recalibrate=recalibrate),
    )
    repair = Repair(calibration, compensation, recalibrate)
    final = 1 - target.requested if target is not None else params.ratio
    plan = amounts(params.schedule, params.steps, final, params.initial_ratio)
    first, saved = resume or (0, None)
    if saved is not None:
        try:
            run.restore(saved, repair)
            given.generator.set_state(saved["generator"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:  # whoever wrote it
            raise ModelError(f"the saved state does not fit this network ({error}); begin anew with --force") from error
    for step, amount in enumerate(plan, start=1):
        if step < first:
            continue
        before = run.network
        kept = run.step(amount, amount / final, repair) if amount > 0 and step != first else {}
        if recover is not None:
            if run.network is model:
                run.network = copy.deepcopy(model)
            state = partial(run.state, repair, given.generator.get_state())
            recover(Transition(before, run.network, kept, step, len(plan), state))
            clock.lap("train")
    return run.outcome(repair, len(plan))


class _Run:
    """One pruned network in the making, over the steps of a schedule."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        keep_patterns: Sequence[str],
        params: StructuralParams,
        target: Target | None,
        score: Callable[[nn.Module, list[ChannelGroup]], dict[str, Tensor | str]],
        clock: Clock,
        ruler: Callable[[TargetKind, nn.Module, Inputs], Ruler],
    ) -> None:
        self.network = self._given = model
        self._inputs, self._patterns, self._params, self._score = inputs, keep_patterns, params, score
        self._clock, self._target = clock, target
        self._dense: dict[str, int] = {}
        self._left: dict[str, int] = {}  # channels after the last removal
        self._edits: list[Edit] = []
        self._follow(None)
        self._own = ratios_by_group(self._traced, self._groups, params.layer_ratio)
        self._ruler = ruler(target.kind, model, inputs) if target is not None else None
        self._allocation = Allocation({}, {}, params.ratio, 0.0)
        self._error = 0.0

    def _follow(self, assumptions: Assumptions | None) -> None:
        """Traces the present network."""
        params = self._params
        self._traced_network = self.network
        self._traced = trace(
            self.network,
            self._inputs,
            prune_stem=params.prune_stem,
            heads=params.heads,
            only=params.only,
            assumptions=assumptions,
        )
        self._groups, kept_by_pattern = apply_patterns(self.network, self._traced, self._patterns)
        if not getattr(params, "residual", True):
            self._groups, held = hold_residual(self._traced, self._groups)
            kept_by_pattern += held
        frozen = [Untouched(name=f.name, channels=f.channels, reason=f.reason) for f in self._traced.frozen]
        self.untouched = [*frozen, *kept_by_pattern]
        if not self._edits:
            self._dense = {}  # names may have moved on to other groups since an earlier trace
        for group in self._groups:
            self._dense.setdefault(group.name, group.channels)
        self._clock.lap("trace")

    def step(self, amount: float, part: float, repair: Repair) -> Kept:
        """Goes on until `amount` is gone; `part` is its share of the final amount. Returns what tensors kept."""
        if self._edits and self._traced_network is not self.network:
            found = self._traced.assumptions
            self._follow(found.after_removal() if found is not None else None)
        scores = self._scores()
        allocation = self._allocate(scores, amount, part)
        self._allocation = allocation
        self._clock.lap("score")
        groups, keep = self._groups, allocation.keep
        edits = _edits(groups, allocation)
        if not edits:
            return {}
        kept = kept_positions(self.network, groups, keep)
        pruned = copy.deepcopy(self.network)
        remove(pruned, groups, keep)
        self._clock.lap("remove")
        try:
            self._error = max(self._error, verify(self.network, pruned, self._traced, keep, self._inputs))
        except VerificationError:
            faulty = faulty_groups(self.network, self._traced, keep, self._inputs)
            if not faulty:
                raise
            self._follow(without(self._traced, faulty))  # with the groups at fault left as they are
            return self.step(amount, part, repair)
        self._clock.lap("verify")
        repair(self.network, pruned, groups, keep, self._clock)
        self.network = pruned
        self._edits += edits
        self._left |= {group.name: len(keep[group.name]) * group.channels_per_unit for group in groups}
        return kept

    def outcome(self, repair: Repair, steps: int) -> StructuralOutcome:
        """The result.

        Raises:
            MethodError: Nothing was removed.
        """
        held = self._allocation.held_back
        if not self._edits:
            left = [f"{entry.name}: {entry.reason}" for entry in self.untouched]
            remedies = [reason for reason in left if "--" in reason]
            reasons = [*(f"{name}: {reason}" for name, reason in held.items()), *remedies, *left, _NOTHING]
            raise MethodError(f"nothing would be removed at {self._asked()}; {reasons[0]}")
        self.untouched += [
            Untouched(name=name, channels=self._dense[name], reason=reason) for name, reason in held.items()
        ]
        target = self._target
        if target is not None and self._ruler is not None:
            target = replace(target, achieved=self._ruler.measure(self.network))
        total = sum(self._dense[name] for name in self._left)
        achieved = 1 - sum(self._left.values()) / total
        wanted = sum(self._own.get(name, 0.0) * self._dense[name] for name in self._left) / total
        return StructuralOutcome(
            model=self.network,
            edits=self._edits,
            untouched=self.untouched,
            requested=achieved if target is not None else wanted if self._own else self._params.ratio,
            achieved=achieved,
            verify_error=self._error,
            compensated=repair.compensated,
            recalibrated=repair.recalibrated,
            seconds=self._clock.laps,
            scope="by name" if self._own else self._params.scope,
            steps=steps,
            target=target,
            trace=self._traced,
        )

    def state(self, repair: Repair, generator: Tensor) -> State:
        """What the steps so far came to; the network is in it as what differs from the one given."""
        found = self._traced.assumptions or Assumptions()
        return {
            "attributes": attribute_differences(self._given, self.network),
            "tensors": state_tensors(self.network),
            "frozen": [name for name, parameter in self.network.named_parameters() if not parameter.requires_grad],
            "dense": self._dense,
            "left": self._left,
            "own": self._own,
            "held_back": self._allocation.held_back,
            "error": self._error,
            "edits": [edit.model_dump() for edit in self._edits],
            "untouched": [entry.model_dump() for entry in self.untouched],
            "choices": dict(found.choices),
            "tied": sorted(found.tied),
            "preferred": sorted(found.preferred),
            "repaired": (repair.compensated, repair.recalibrated),
            "generator": generator,
        }

    def restore(self, state: State, repair: Repair) -> None:
        """Puts `state()` back; the network that was given is traced already."""
        self.network = copy.deepcopy(self._given)
        apply_attributes(self.network, state["attributes"])
        assign_tensors(self.network, _tied(state["tensors"]), frozenset(state["frozen"]))
        self._dense, self._left, self._own = state["dense"], state["left"], state["own"]
        self._allocation = replace(self._allocation, held_back=state["held_back"])
        self._error = state["error"]
        self._edits = [Edit(**edit) for edit in state["edits"]]
        self.untouched = [Untouched(**entry) for entry in state["untouched"]]
        known = Assumptions(state["choices"], frozenset(state["tied"]), {}, frozenset(state["preferred"]))
        self._traced = replace(self._traced, assumptions=known)
        repair.compensated, repair.recalibrated = state["repaired"]

    def _asked(self) -> str:
        if self._target is not None:
            return f"--{self._target.kind} {self._target.requested:g}"
        return "the ratios given" if self._own else f"ratio {self._params.ratio:g}"

    def _scores(self) -> dict[str, Tensor]:
        """Scores of the groups that can be ranked; the others become untouched once."""
        scores: dict[str, Tensor] = {}
        for name, value in self._score(self.network, self._groups).items():
            if isinstance(value, str):
                self.untouched.append(Untouched(name=name, channels=self._dense[name], reason=value))
            elif not bool(torch.isfinite(value).all()):
                raise MethodError(f"{name}: its scores are not finite; check the weights and the data")
            else:
                scores[name] = value
        self._groups = [group for group in self._groups if group.name in scores]
        return scores

    def _allocate(self, scores: dict[str, Tensor], amount: float, part: float) -> Allocation:
        own = {name: ratio * part for name, ratio in self._own.items()} or None
        dense = {name: self._dense[name] for name in scores}
        # Groups that can shrink no further count as earlier steps left them; the others make up for it.
        done = {name: width for name, width in self._left.items() if name not in dense}
        total, open_ = sum(self._dense[name] for name in done) + sum(dense.values()), sum(dense.values())

        def plan(ratio: float) -> Allocation:
            if done and open_ and self._params.scope != "local":
                rest = (1 - ratio) * total - sum(done.values())
                ratio = min(1.0, max(0.0, 1 - rest / open_))
            return allocate(self._groups, scores, self._params, Demand(ratio, own, dense))

        if self._ruler is None or not self._groups:
            return plan(amount)
        return self._ruler.reach(1 - amount, self.network, self._groups, plan)


def _edits(groups: Sequence[ChannelGroup], allocation: Allocation) -> list[Edit]:
    return [
        Edit(
            group=group.name,
            width_before=group.channels,
            width_after=len(allocation.keep[group.name]) * group.channels_per_unit,
            keep_indices=allocation.keep[group.name].tolist(),
            layers=list(group.modules("producer")),
        )
        for group in groups
        if len(allocation.keep[group.name]) < group.units
    ]


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with one object for those that lie at one place in memory."""
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    return {
        name: seen.setdefault((tensor.data_ptr(), tensor.shape), tensor) if tensor.numel() else tensor
        for name, tensor in tensors.items()
    }
