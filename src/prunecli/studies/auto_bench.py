"""One network for `prune auto`: traced once, scored once for each criterion, and pruned, repaired and judged on copies.

A network is judged after its repair and before any training (Li et al., EagleEye, ECCV 2020, who measure the statistics
of normalisations again before they judge; here that is one of several repairs).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.criteria.base import Criterion
from prunecli.data.splits import Split
from prunecli.engine.evaluate import evaluate
from prunecli.engine.resources import resource_errors
from prunecli.errors import DataError, MethodError, TargetError, VerificationError
from prunecli.inputs import Inputs, model_device
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.latency import time_paired
from prunecli.methods.allocation import Allocation, Demand, allocate
from prunecli.methods.consequence import Consequences, measure_curves
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import Ranking, score, select, why_nothing
from prunecli.methods.registry import get_structural
from prunecli.methods.repair import Repair, first_samples
from prunecli.methods.request import PruneRequest
from prunecli.methods.targets import Plan, Ruler
from prunecli.methods.widths import widths_of
from prunecli.pipeline.stages.structural import refuse_unprunable
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.auto import Objective
from prunecli.report.scores import score_named
from prunecli.studies.auto_candidates import SENSITIVITY, Candidate
from prunecli.studies.batches import KeptBatches
from prunecli.studies.entrants import Entrant
from prunecli.studies.layer_curves import Curve, Sensitivity
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.removal.slice import remove

_RATIOS = (0.25, 0.5, 0.75)
"""Shares of a layer's channels that are removed on trial for layer shares from sensitivity."""
_FEWEST = 16
"""Training samples without which there is nothing to repair on and nothing to judge."""
_STEPS = 12
"""Of the bisection from a share of the cost to a drop of single layers."""
_ROUNDS = 20
"""Pairs of passes by which a trial's latency is measured."""


@dataclass(frozen=True)
class Cut:
    """A candidate at one amount: what a recipe says, and which units stay.

    Attributes:
        params: Parameters of the method, those that are no defaults.
        keep: Kept units by group name.
    """

    params: dict[str, Any]
    keep: dict[str, Tensor]


@dataclass(frozen=True)
class Judged:
    """A pruned and repaired network before any training.

    Attributes:
        params: Parameters of the method that lead to it.
        score: Its score on samples to search by.
        params_share: Its parameters, relative to the dense network's.
        macs_share: Its multiply-accumulates.
        latency_share: Its time for one sample; None where nobody asks for the fastest.
    """

    params: dict[str, Any]
    score: float
    params_share: float
    macs_share: float
    latency_share: float | None


class Bench:
    """The dense network, what it is judged on, and copies that are pruned.

    Args:
        space: The network, data and device.
        stage: Patterns, parameters that all candidates share, and how many samples repairs and criteria see.
        objective: What is to be small.
        images: Training samples to judge on, at most; none of them is used by criteria or repairs.

    Attributes:
        calibration_images: How many samples criteria and repairs see.
        images: How many samples it is judged on.
        dense_score: The dense network's score there.

    Raises:
        DataError: There is nothing to train on or no label to judge by, or there are too few samples.
        MethodError: Nothing can be removed.
    """

    def __init__(self, space: Workspace, stage: PruneStage, objective: Objective, images: int) -> None:
        self._space, self._stage, self._objective = space, stage, objective
        loaded = space.model()
        refuse_unprunable(space)
        space.judging.check()
        self.task = space.judging.training_task()
        self.task.require_labels()
        self.score = score_named(self.task.figures.score_name)
        training = space.data().training_split()
        self.calibration_images, self.searched = divided(training, stage.calibration_images, images, space.recipe.seed)
        self.images = len(self.searched.labels)
        self.example: Inputs = space.inputs.example()
        self._calibration = KeptBatches(space.inputs.calibration(training, self.calibration_images).labelled)
        self._judged_on = KeptBatches(space.inputs.batches(self.searched))
        self.model = in_form(loaded.model.to(space.device).eval(), self.example)
        with resource_errors(space.recipe.data.batch_size):
            self._selection = select(self.model, self._request("l2", StructuralParams(**stage.params)))
        if not self._selection.groups:
            raise MethodError(f"no layer can shrink; {why_nothing(self._selection.untouched)}")
        self.params = parameter_count(self.model)
        self.macs = count_macs(self.model, self.example).total
        self.dense_score = self.judge(copied(self.model))
        self._rankings: dict[str, Ranking] = {}
        self._plans: dict[tuple[str, str], Plan] = {}
        self._cuts: dict[tuple[str, str, float], Cut] = {}

    @property
    def kind(self) -> str:
        """What amounts are shares of: of time no two measurements agree, so it is that of multiply-accumulates."""
        return "params" if self._objective == "params" else "macs"

    @property
    def groups(self) -> int:
        """How many groups of layers may shrink."""
        return len(self._selection.groups)

    def judge(self, network: nn.Module) -> float:
        """The score of a network on the samples to search by; NaN counts as the worst there is."""
        classifier = self._space.judging.classifier(network, remember=True)
        found = float(evaluate(classifier, self._judged_on, self._space.device, task=self.task).score)
        return found if math.isfinite(found) else self.score.merit(-math.inf)

    def drop(self, found: float) -> float:
        """How much worse than the dense network's a score is."""
        return self.score.lost(self.dense_score, found)

    def prepare(self, entrant: Entrant) -> None:
        """Scores the network by a criterion, once.

        Raises:
            MethodError: It cannot.
        """
        self._ranking(entrant)

    def trial(self, candidate: Candidate, share: float) -> Judged | None:
        """Prunes a copy to a share of the cost, repairs it and judges it; None: so little cannot be left.

        Raises:
            MethodError: The criterion cannot rank anything.
        """
        with resource_errors(self._space.recipe.data.batch_size):
            try:
                cut = self.cut(candidate, share)
            except (TargetError, VerificationError):
                return None
            pruned = copied(self.model)
            groups = list(self._ranking(candidate.entrant).groups)
            remove(pruned, groups, cut.keep)
            self._repair(candidate)(self.model, pruned, groups, cut.keep)
            found = self.judge(pruned)
            latency = None
            if self._objective == "latency":
                pair, inputs = [self.model, pruned], [self.example, self.example]
                latency = time_paired(pair, inputs, rounds=_ROUNDS, device=model_device(self.model)).ratios[1]
        self._space.report_bad()
        return Judged(
            cut.params,
            found,
            parameter_count(pruned) / self.params,
            count_macs(pruned, self.example).total / self.macs,
            latency,
        )

    def cut(self, candidate: Candidate, share: float) -> Cut:
        """Which units stay when a share of the cost does; repairs have no part in it.

        Raises:
            TargetError: So little cannot be left.
            VerificationError: The network does not run with so few channels.
        """
        key = candidate.entrant.label, candidate.scope, share
        if key not in self._cuts:
            cut = self._cut(candidate, share)
            if all(len(cut.keep[group.name]) == group.units for group in self._ranking(candidate.entrant).groups):
                raise TargetError(f"widths are rounded, and nothing goes at {share:g} of the cost")
            self._cuts[key] = cut
        return self._cuts[key]

    def _cut(self, candidate: Candidate, share: float) -> Cut:
        ranking = self._ranking(candidate.entrant)
        groups = list(ranking.groups)
        ruler, plan = self._ruler, self._plan(candidate)
        if candidate.scope != SENSITIVITY:
            allocation = ruler.reach(share, self.model, groups, plan)
            return Cut(candidate.params() | {self.kind: share}, allocation.keep)
        allocation = self._bisected(ruler, plan, groups, share)
        ratios = {group.name: _lost(group.units, len(allocation.keep[group.name])) for group in groups}
        if not any(ratios.values()):
            raise TargetError("no layer loses anything")
        return Cut(candidate.params() | {"layer_ratio": ratios}, allocation.keep)

    @cached_property
    def _ruler(self) -> Ruler:
        return Ruler("params" if self.kind == "params" else "macs", self.model, self.example)

    def _request(self, method: str, params: StructuralParams) -> PruneRequest:
        return PruneRequest(
            method=method,
            params=params,
            example_inputs=self.example,
            keep=self._stage.keep,
            seed=self._space.recipe.seed,
            calibration=self._calibration,
            loss=self._space.judging.loss(),
        )

    def _ranking(self, entrant: Entrant) -> Ranking:
        if entrant.label not in self._rankings:
            criterion: Criterion = get_structural(entrant.method.name).load()
            request = self._request(entrant.method.name, entrant.params)
            with resource_errors(self._space.recipe.data.batch_size):
                selection = select(self.model, dataclasses.replace(request, trace=self._selection.trace))
                ranking = score(self.model, selection, criterion, request.calibrated())
            if not ranking.groups:
                raise MethodError(f"{entrant.label} ranks no layer; {why_nothing(ranking.untouched)}")
            self._rankings[entrant.label] = ranking
        return self._rankings[entrant.label]

    def _repair(self, candidate: Candidate) -> Repair:
        seed = self._space.recipe.seed
        return Repair(self._calibration, candidate.compensate, candidate.recalibrate, self.example, seed)

    def _plan(self, candidate: Candidate) -> Plan:
        """From an amount between 0 and 1 to what stays; what it takes to know is measured once."""
        key = candidate.entrant.label, candidate.scope
        if key not in self._plans:
            make = self._by_sensitivity if candidate.scope == SENSITIVITY else self._by_scope
            self._plans[key] = make(candidate)
        return self._plans[key]

    def _by_scope(self, candidate: Candidate) -> Plan:
        ranking = self._ranking(candidate.entrant)
        groups, scores = list(ranking.groups), ranking.scores
        params = dataclasses.replace(candidate.entrant.params, scope=cast(Any, candidate.scope))
        dense = {group.name: group.channels for group in groups}
        consequences = None
        widths = widths_of(self.model, groups, params, self.kind, self.example, dense)
        if widths.costs is not None:
            inputs = Repair(self._calibration, "none", False, self.example).inputs
            assert inputs is not None, "there is calibration data"
            fewest = {name: numbers[0] for name, numbers in widths.allowed.items()}
            curves = measure_curves(self.model, groups, scores, fewest, first_samples(inputs)[0])
            consequences = Consequences(curves, widths.costs)

        def plan(ratio: float) -> Allocation:
            demand = Demand(ratio, None, dense, consequences, widths.chosen)
            return allocate(groups, scores, params, demand)

        return plan

    def _by_sensitivity(self, candidate: Candidate) -> Plan:
        """Layers are cut alone, and at one amount all of them lose what costs each of them the same."""
        ranking = self._ranking(candidate.entrant)
        groups, params = list(ranking.groups), candidate.entrant.params
        some = self.searched.subset(np.arange(0, self.images, 4))
        judged_on = KeptBatches(self._space.inputs.batches(some))

        def merit(network: nn.Module) -> float:
            classifier = self._space.judging.classifier(network, remember=True)
            found = float(evaluate(classifier, judged_on, self._space.device, task=self.task).score)
            return self.task.merit(found) if math.isfinite(found) else -math.inf

        # Repairing each of so many networks would take longer than all other trials together.
        study = Sensitivity(self.model, groups, ranking.scores, params, merit, lambda *removal: None)
        curves: list[Curve] = [study.curve(group.name, _RATIOS) for group in groups]
        most = max((max(0.0, point.drop) for curve in curves for point in curve.points), default=0.0)

        def plan(amount: float) -> Allocation:
            own = {curve.group: round(min(curve.ratio_within(amount * most), 0.99), 4) for curve in curves}
            return allocate(groups, ranking.scores, params, Demand(0.0, own))

        return plan

    def _bisected(self, ruler: Ruler, plan: Plan, groups: list[Any], share: float) -> Allocation:
        """The allocation of layer shares whose cost is nearest to `share`.

        Raises:
            TargetError: Even what all layers were tried with leaves more.
        """
        best, reached = plan(1.0), ruler.share(self.model, groups, plan(1.0))
        if reached > share + 0.01:
            raise TargetError(f"layers were not tried with so few channels that {share:g} of the cost is left")
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            allocation = plan(middle)
            left = ruler.share(self.model, groups, allocation)
            if abs(left - share) < abs(reached - share):
                best, reached = allocation, left
            low, high = (middle, high) if left > share else (low, middle)
        return best


def divided(training: Split, calibration: int, images: int, seed: int) -> tuple[int, Split]:
    """How many training samples criteria and repairs see, and others to judge on, at most `images`.

    Where there are too few for both, each gets half.

    Raises:
        DataError: There are next to none.
    """
    total = len(training.labels)
    if total < _FEWEST:
        raise DataError(f"{total} training samples are too few to repair on some and to judge on others")
    calibration = min(calibration, max(total - images, total // 2))
    # CalibrationBatches takes the first of this permutation.
    order = np.random.default_rng(seed).permutation(total)
    return calibration, training.subset(np.sort(order[calibration : calibration + images]))


def _lost(units: int, kept: int) -> float:
    return round(1 - kept / units, 4)
