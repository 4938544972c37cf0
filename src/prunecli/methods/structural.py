"""The flow of every method that removes channels: trace, score, allocate, remove, verify, compensate, recalibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Edit, Untouched
from prunecli.collective import first_decides, require_agreed_weights
from prunecli.copying import copied, release_copies, without_collections
from prunecli.criteria.base import Criterion
from prunecli.engine.hooks import State
from prunecli.engine.optimizer import KeptPositions
from prunecli.errors import MethodError, ModelError, VerificationError
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.allocation import Allocation, Demand, allocate
from prunecli.methods.consequence import Consequences, measure_curves
from prunecli.methods.layer_costs import LayerCosts
from prunecli.methods.outcome import Pruned, PruneReport
from prunecli.methods.params import StructuralParams
from prunecli.methods.plans import agreed_plan, edits_of
from prunecli.methods.ranking import Ranking, score, select, why_nothing
from prunecli.methods.registry import get_structural
from prunecli.methods.repair import Clock, Repair, first_samples
from prunecli.methods.repair_trials import RepairTrial
from prunecli.methods.request import PruneRequest, Transition
from prunecli.methods.retention import LossBound, ratios_by_variation, retention_of
from prunecli.methods.schedule import amounts
from prunecli.methods.selection import ratios_by_group, with_scope
from prunecli.methods.targets import Plan, Ruler, target_of
from prunecli.methods.widths import widths_of
from prunecli.naming import give_data, option
from prunecli.phases import phase
from prunecli.registry import imported
from prunecli.surgery.groups import Keep
from prunecli.surgery.proof.verify import faulty_groups, verify
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.removal.rebuild import apply_attributes, assign_tensors, attribute_differences, state_tensors
from prunecli.surgery.removal.slice import AttributeChange, kept_positions, make_contiguous, remove, without_copies
from prunecli.surgery.tracing.trace import without
from prunecli.surgery.tracing.traced import Assumptions


def prune_structural(model: nn.Module, request: PruneRequest) -> Pruned:
    """Removes the least important channels of a copy of `model`.

    Args:
        model: Any module; not changed.
        request: The method, how much to remove, where, and in how many steps.

    Raises:
        MethodError: A pattern matches no layer, settings exclude each other, or nothing can be removed.
        ModelError: The network cannot be traced, or a saved state does not fit it.
        VerificationError: The result is not the masked original; nothing is returned.
    """
    params = request.params
    model = in_form(model, request.example_inputs)
    target = target_of(params)
    retention_of(params, data=request.calibration is not None)
    if params.schedule == "once" and (params.steps != StructuralParams.steps or params.initial_ratio is not None):
        raise MethodError(
            f"{option('steps')} and {option('initial_ratio')} belong to a schedule; add "
            f"{option('schedule', 'linear')}, cubic or ramp"
        )
    run = _Run(model, replace(request, params=with_scope(model, params)))
    final = 1 - target.requested if target is not None else params.ratio
    plan = amounts(params.schedule, params.steps, final, params.initial_ratio)
    first, saved = request.resume or (0, None)
    if saved is not None:
        run.restore(saved)
    for step, amount in enumerate(plan, start=1):
        if step < first:
            continue
        before = run.network
        kept = run.step(amount, amount / final) if amount > 0 and step != first else {}
        if request.recover is not None:
            if run.network is model:
                run.network = copied(model)
            state = partial(run.state, run.generator_state())
            request.recover(Transition(before, run.network, kept, step, len(plan), state))
            run.clock.lap("train")
    return run.outcome(len(plan))


class _Run:
    """One network being pruned, over the steps of a schedule."""

    def __init__(self, model: nn.Module, request: PruneRequest) -> None:
        self.network = self._original = model
        self.clock = Clock()
        self._request, self._params = request, request.params
        self._criterion: Criterion = request.criterion()
        self._calibration = request.calibrated()
        self._repair = Repair(
            request.calibration, request.compensation, request.recalibrate, request.example_inputs, request.seed
        )
        self._dense: dict[str, int] = {}
        self._left: dict[str, int] = {}  # channels after the last removal
        self._edits: list[Edit] = []
        self._attributes: dict[str, AttributeChange] = {}
        self._follow(None)
        self._request = replace(request, trace=None)  # the network is going to change
        self._own = self._own_ratios()
        self._target = target_of(self._params)
        self._retention = retention_of(self._params, data=request.calibration is not None)
        self._ruler = None
        if self._target is not None:
            self._ruler = Ruler(
                self._target.kind,
                model,
                request.example_inputs,
                batches=request.calibration,
                compensation="ls" if request.compensation == "auto" else request.compensation,
                recalibrate=request.recalibrate is not False,
            )
        self._allocation = Allocation({}, {}, self._params.ratio, 0.0)
        self._error = 0.0

    def _own_ratios(self) -> dict[str, float]:
        """Ratios of single groups: those that the method decides on, or those that are asked for by name."""
        decided = get_structural(self._request.method).ratios
        if decided:
            return dict(imported(decided)(self._groups, self._params))
        return ratios_by_group(self._traced, self._groups, self._params.layer_ratio)

    def _follow(self, assumptions: Assumptions | None) -> None:
        """Traces the present network."""
        self._traced_network = self.network
        with without_collections():
            self._selection = select(self.network, self._request, assumptions)
        self._traced, self._groups = self._selection.trace, list(self._selection.groups)
        self.untouched = list(self._selection.untouched)
        if not self._edits:
            self._dense = {}  # names may have moved on to other groups since an earlier trace
        for group in self._groups:
            self._dense.setdefault(group.name, group.channels)
        release_copies(self.network, self._original)
        self.clock.lap("trace")

    def step(self, amount: float, part: float) -> KeptPositions:
        """Removes channels until `amount` is gone; `part` is its share of the final amount.

        Returns:
            What tensors kept.
        """
        if self._edits and self._traced_network is not self.network:
            known = self._traced.assumptions
            self._follow(known.after_removal() if known is not None else None)
        ranking = self._ranked()
        try:
            self._allocation = allocation = self._allocate(ranking.scores, amount, part)
        except VerificationError as error:  # a candidate does not even run
            self._leave_alone(self._ruler.tried if self._ruler is not None else {}, error)
            return self.step(amount, part)
        self._calibration.found["score_histogram"] = allocation.score_histogram(ranking.scores)
        self.clock.lap("score")
        groups, keep = self._groups, agreed_plan(allocation.keep)
        edits = edits_of(groups, keep)
        if not edits:
            return {}
        with without_collections(), phase("remove"):
            kept = kept_positions(self.network, groups, keep)
            pruned = copied(self.network, without_copies(self.network, groups, kept))
            changes = remove(pruned, groups, keep, kept)
            make_contiguous(pruned)
        self.clock.lap("remove")
        inputs = self._request.example_inputs
        try:
            with without_collections():
                found = first_decides(lambda: verify(self.network, pruned, self._traced, keep, inputs))
            self._error = max(self._error, found)
        except VerificationError as error:
            self._leave_alone(keep, error)
            return self.step(amount, part)
        release_copies(self.network, self._original, pruned)
        self.clock.lap("verify")
        self._repair(self.network, pruned, groups, keep, self.clock)
        require_agreed_weights(pruned)
        self.network = pruned
        self._edits += edits
        for change in changes:
            first = self._attributes.get(change.name, change)
            if not change.repeats:
                self._attributes[change.name] = replace(change, old=first.old)
        self._left |= {group.name: len(keep[group.name]) * group.channels_per_unit for group in groups}
        return kept

    def _leave_alone(self, keep: Keep, error: VerificationError) -> None:
        """Traces again without the groups that are to blame for what went wrong when all but `keep` was removed.

        Raises:
            VerificationError: The error, if none is to blame.
        """
        inputs = self._request.example_inputs
        faulty = first_decides(lambda: faulty_groups(self.network, self._traced, keep, inputs))
        if not faulty:
            raise error
        self._follow(without(self._traced, faulty))

    def outcome(self, steps: int) -> Pruned:
        """The result.

        Raises:
            MethodError: Nothing was removed.
        """
        held = self._allocation.held_back
        if not self._edits:
            reasons = [*(f"{name}: {reason}" for name, reason in held.items()), why_nothing(self.untouched)]
            raise MethodError(f"nothing would be removed at {self._asked()}; {reasons[0]}")
        self.untouched += [
            Untouched(name=name, channels=self._dense[name], reason=reason) for name, reason in held.items()
        ]
        target = self._target
        if target is not None and self._ruler is not None:
            target = replace(target, achieved=self._ruler.measure(self.network))
        total = sum(self._dense[name] for name in self._left)
        achieved = 1 - sum(self._left.values()) / total
        own = sum(self._own.get(name, 0.0) * self._dense[name] for name in self._left) / total
        requested = achieved if target is not None or self._retention else own if self._own else self._params.ratio
        inputs = self._request.example_inputs
        followed = self._traced.followed
        report = PruneReport(
            method=self._request.method,
            scope="by name" if self._own else self._params.scope,
            steps=steps,
            target=target,
            requested=round(requested, 6),
            achieved=round(achieved, 6),
            params_before=parameter_count(self._original),
            params_after=parameter_count(self.network),
            macs_before=count_macs(self._original, inputs),
            macs_after=count_macs(self.network, inputs),
            verify_error=self._error,
            compensated=self._repair.compensated,
            recalibrated=self._repair.recalibrated,
            repairs=self._repair.trials,
            reconstruction=self._repair.reconstruction,
            seconds=self.clock.laps,
            edits=tuple(self._edits),
            untouched=tuple(self.untouched),
            attributes=tuple(self._attributes.values()),
            outputs=followed.kept_outputs or () if followed is not None else (),
            free_outputs=followed.free_outputs if followed is not None else (),
            scoring=dict(self._calibration.found),
        )
        return Pruned(self.network, report, self._traced)

    def generator_state(self) -> Tensor:
        """State of the criterion's random number generator."""
        return self._calibration.generator.get_state()

    def state(self, generator: Tensor) -> State:
        """The result of the steps so far; of the network, only what differs from the original."""
        known = self._traced.assumptions or Assumptions()
        return {
            "attributes": attribute_differences(self._original, self.network),
            "tensors": state_tensors(self.network),
            "frozen": [name for name, parameter in self.network.named_parameters() if not parameter.requires_grad],
            "dense": self._dense,
            "left": self._left,
            "own": self._own,
            "held_back": self._allocation.held_back,
            "error": self._error,
            "edits": [edit.model_dump() for edit in self._edits],
            "untouched": [entry.model_dump() for entry in self.untouched],
            "changed": [asdict(change) for change in self._attributes.values()],
            "preferred": sorted(known.preferred),
            "repaired": (self._repair.compensated, self._repair.recalibrated),
            "repairs": [asdict(trial) for trial in self._repair.trials],
            "reconstruction": self._repair.reconstruction,
            "scoring": dict(self._calibration.found),
            "generator": generator,
        }

    def restore(self, state: State) -> None:
        """Puts `state()` back; the original network is traced already.

        Raises:
            ModelError: It is the state of another network.
        """
        try:
            self._restore(state)
            self._calibration.generator.set_state(state["generator"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:  # whoever wrote it
            raise ModelError(
                f"the saved state does not fit this network ({error}); start again with --force"
            ) from error

    def _restore(self, state: State) -> None:
        self.network = copied(self._original)
        apply_attributes(self.network, state["attributes"])
        assign_tensors(self.network, _tied(state["tensors"]), frozenset(state["frozen"]))
        self._dense, self._left, self._own = state["dense"], state["left"], state["own"]
        self._allocation = replace(self._allocation, held_back=state["held_back"])
        self._error = state["error"]
        self._edits = [Edit(**edit) for edit in state["edits"]]
        self.untouched = [Untouched(**entry) for entry in state["untouched"]]
        changes = [AttributeChange(**change) for change in state["changed"]]
        self._attributes = {change.name: change for change in changes}
        known = Assumptions(preferred=frozenset(state["preferred"]))
        self._traced = replace(self._traced, assumptions=known)
        self._repair.compensated, self._repair.recalibrated = state["repaired"]
        self._repair.trials = tuple(RepairTrial(**trial) for trial in state["repairs"])
        self._repair.reconstruction = state["reconstruction"]
        self._calibration.found.update(state["scoring"])

    def _asked(self) -> str:
        if self._target is not None:
            return option(self._target.kind, self._target.requested)
        if self._retention:
            return option("retention", self._retention)
        return "the ratios given" if self._own else option("ratio", self._params.ratio)

    def _ranked(self) -> Ranking:
        """Ranks the groups of the present network; those that cannot be ranked become untouched once."""
        selection = replace(self._selection, groups=tuple(self._groups), untouched=tuple(self.untouched))
        self._calibration.found.clear()  # what an earlier step found out
        ranking = score(self.network, selection, self._criterion, self._calibration)
        self._groups, self.untouched = list(ranking.groups), list(ranking.untouched)
        return ranking

    def _allocate(self, scores: dict[str, Tensor], amount: float, part: float) -> Allocation:
        own = {name: ratio * part for name, ratio in self._own.items()} or None
        dense = {name: self._dense[name] for name in scores}
        kind = self._target.kind if self._target is not None else None
        inputs = self._request.example_inputs
        widths = widths_of(self.network, self._groups, self._params, kind, inputs, dense)
        if widths.chosen:
            self.clock.lap("time layers")
        consequences = None
        if widths.costs is not None and self._params.scope == "measured" and not own:
            consequences = self._consequences(scores, dense, widths.allowed, widths.costs)
        # Groups that can shrink no further count as earlier steps left them; the others make up for it.
        done = {name: width for name, width in self._left.items() if name not in dense}
        total, open_ = sum(self._dense[name] for name in done) + sum(dense.values()), sum(dense.values())

        def plan(ratio: float) -> Allocation:
            if done and open_ and self._params.scope != "local":
                rest = (1 - ratio) * total - sum(done.values())
                ratio = min(1.0, max(0.0, 1 - rest / open_))
            return allocate(self._groups, scores, self._params, Demand(ratio, own, dense, consequences, widths.chosen))

        if self._retention and self._groups:
            allocation = self._retained(scores, plan, dense)
        elif self._ruler is None or not self._groups:
            allocation = plan(amount)
        else:
            allocation = self._ruler.reach(1 - amount, self.network, self._groups, plan)
        if consequences is not None:
            units = {name: len(keep) for name, keep in allocation.keep.items()}
            self._calibration.found["expected_difference"] = consequences.expected(units)
        return allocation

    def _consequences(
        self,
        scores: dict[str, Tensor],
        dense: dict[str, int],
        allowed: Mapping[str, Sequence[int]],
        costs: LayerCosts,
    ) -> Consequences:
        """What it does to the present network to cut each group."""
        batches = self._repair.inputs
        if batches is None:
            raise MethodError(f"{option('scope', 'measured')} judges layers on data: {give_data()}")
        fewest = {name: numbers[0] for name, numbers in allowed.items()}
        curves = measure_curves(self.network, self._groups, scores, fewest, first_samples(batches)[0])
        self.clock.lap("measure layers")
        # A target is measured against the original; a ratio counts its channels.
        return Consequences(curves, costs, float(sum(dense.values())) if self._target is None else None)

    def _retained(self, scores: dict[str, Tensor], plan: Plan, dense: dict[str, int]) -> Allocation:
        """What stays by the rule in place of a ratio."""
        found = self._calibration.found
        found["retention"] = self._retention
        if self._retention == "cv-legacy":
            return allocate(self._groups, scores, self._params, Demand(0.0, ratios_by_variation(scores), dense))
        params: Any = self._params
        bound = LossBound(self.network, self._groups, scores, self._calibration, params.normalise)
        allocation = bound.reach(params.epsilon, plan)
        found |= {"epsilon": params.epsilon, **bound.found}
        return allocation


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with a single object for those that share memory."""
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    return {
        name: seen.setdefault((tensor.data_ptr(), tensor.shape), tensor) if tensor.numel() else tensor
        for name, tensor in tensors.items()
    }
