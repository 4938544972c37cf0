"""Setting single weights to zero, in one step or in several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.manifest import Masks
from prunecli.collective import agreed, require_agreed_weights
from prunecli.criteria.base import Calibration, Loss, default_loss
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod
from prunecli.criteria.weights.maskable import find_maskable
from prunecli.engine.hooks import State
from prunecli.errors import MethodError
from prunecli.inputs import Inputs
from prunecli.methods.registry import get_method
from prunecli.methods.schedule import amounts
from prunecli.methods.selection import require_matches
from prunecli.methods.sparse_params import SparseParams
from prunecli.patterns import matching_pattern
from prunecli.phases import phase
from prunecli.sparsity.choosing import Goal, Scope, keep_masks, zeros_in

_MAX_RUN = 64
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class SparseRequest:
    """What a method for single weights is asked to do.

    Attributes:
        method: Its name.
        params: Its parameters.
        example_inputs: Inputs that the network accepts.
        keep: Layer names or shell patterns that stay as they are.
        seed: Seed of everything random.
        calibration: Batches that can be iterated more than once, inputs or (inputs, labels).
        loss: What gradients are taken of.
    """

    method: str
    params: SparseParams
    example_inputs: Inputs
    keep: Sequence[str] = ()
    seed: int = 0
    calibration: Iterable[Any] | None = None
    loss: Loss = default_loss


class WeightPruning:
    """Masks a network step by step; whoever owns it may train the network in between.

    Args:
        network: Changed in place.
        request: What to do.
        masks: What is masked in it already. Zeros of other layers count as masked too: a file tells no difference.

    Attributes:
        goals: One for each step.
        reasons: By module name, why weights were left alone.

    Raises:
        MethodError: The parameters make no sense for this network, or no layer can be masked.
    """

    def __init__(self, network: nn.Module, request: SparseRequest, masks: Masks | None = None) -> None:
        self._network, self._request = network, request
        self._before = masks or Masks()
        self._method: WeightMethod = get_method(request.method).load()
        params = request.params
        self._scope = _scope(request.method, self._method, params)
        pattern = parse_pattern(params.pattern)
        require_matches(network, request.keep)
        found = find_maskable(network, request.example_inputs, lambda name: matching_pattern(name, request.keep))
        self._weights, self.reasons = found.weights, found.reasons
        if pattern is not None:
            self._leave_indivisible(pattern[1])
        self._require_weights()
        self.goals = _goals(params, pattern, self.sparsity)
        self._require_progress()

    @property
    def weights(self) -> Sequence[MaskableWeight]:
        """Those that are masked."""
        return self._weights

    @property
    def counts(self) -> tuple[int, int]:
        """Weights of the masked layers, and how many of them are zero."""
        zeros = sum(int((weight.parameter.detach() == 0).sum()) for weight in self._weights)
        return sum(weight.parameter.numel() for weight in self._weights), zeros

    @property
    def sparsity(self) -> float:
        """Share of the weights of the masked layers that is zero."""
        total, zeros = self.counts
        return zeros / total

    @phase("score")
    def step(self, goal: Goal) -> None:
        """Masks the network up to a goal.

        Raises:
            MethodError: The method does not work on this network.
            RanksDiffer: Processes that work together come to different scores or weights.
        """
        request = self._request
        calibration = Calibration(
            generator=torch.Generator().manual_seed(request.seed),
            batches=request.calibration,
            loss=request.loss,
            example_inputs=request.example_inputs,
        )
        if self._method.solve is not None:
            self._leave(self._method.solve(self._network, self._weights, calibration, goal))
        else:
            for part in _rounds(goal, self.sparsity, self._method.rounds):
                self._rank(part, calibration)
        require_agreed_weights(self._network)

    def masks(self) -> Masks:
        """What is masked now, what was before included."""
        named = {id(parameter): name for name, parameter in self._network.named_parameters()}
        before = [named[id(self._network.get_parameter(name))] for name in self._before.weights]
        names = {*before, *(weight.name for weight in self._weights)}
        return Masks(weights=[name for name in named.values() if name in names], spikes=self._before.spikes)

    def lone(self) -> list[str]:
        """Layers with a single weight left."""
        return [
            weight.name
            for weight in self._weights
            if weight.parameter.numel() > 1 and int(torch.count_nonzero(weight.parameter.detach())) == 1
        ]

    def state(self) -> State:
        """What to remember of the steps so far, beside the network's weights."""
        return {"weights": [weight.name for weight in self._weights], "reasons": dict(self.reasons)}

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        known = set(state["weights"])
        self._weights = [weight for weight in self._weights if weight.name in known]
        self.reasons = dict(state["reasons"])

    def _rank(self, goal: Goal, calibration: Calibration) -> None:
        assert self._method.score is not None
        scores = agreed("the scores", self._method.score(self._network, self._weights, calibration))
        self._leave({name: value for name, value in scores.items() if isinstance(value, str)})
        blocks = {}
        for weight in self._weights:
            values = scores[weight.name]
            assert not isinstance(values, str)
            if bool(values.isnan().any()):
                raise MethodError(f"method {self._request.method}: scores of {weight.name} are not numbers")
            blocks[weight.name] = weight.scored(values)
        if len({values.device for values in blocks.values()}) > 1:
            blocks = {name: values.cpu() for name, values in blocks.items()}
        for weight, keep in zip(self._weights, keep_masks(blocks, goal, self._scope).values(), strict=True):
            weight.mask(keep)

    def _leave(self, reasons: dict[str, str]) -> None:
        for weight in self._weights:
            if weight.name in reasons:
                self.reasons |= dict.fromkeys(weight.modules, reasons[weight.name])
        self._weights = [weight for weight in self._weights if weight.name not in reasons]
        self._require_weights()

    def _leave_indivisible(self, of: int) -> None:
        reasons = {
            weight.name: f"its {weight.inputs} inputs are not a multiple of {of}"
            for weight in self._weights
            if weight.inputs % of
        }
        self._leave(reasons)

    def _require_weights(self) -> None:
        if not self._weights:
            why = "; ".join(f"{name}: {why}" for name, why in list(self.reasons.items())[:_SHOWN])
            raise MethodError(f"no layer can be masked ({why or 'there are no convolutions or linear layers'})")

    def _require_progress(self) -> None:
        """Checks that there is something left to do.

        Raises:
            MethodError: The network is as sparse as that already.
        """
        goal = self.goals[-1]
        if goal.pattern is not None:
            scores = {weight.name: weight.scored(weight.values().abs()) for weight in self._weights}
            kept = keep_masks(scores, goal, "layer")
            if not any(bool((~keep & ~torch.isneginf(scores[name])).any()) for name, keep in kept.items()):
                raise MethodError(f"the network's weights have the pattern {self._request.params.pattern} already")
            return
        total, zeros = self.counts
        if self._scope == "global":
            done = zeros >= min(goal.zeros(total), total - len(self._weights))
        else:
            values = [weight.scored(weight.values().abs()) for weight in self._weights]
            done = sum(zeros_in(value, goal) for value in values) <= zeros
        if done:
            raise MethodError(
                f"{zeros:,} of {total:,} weights are zero already ({100 * zeros / total:.4g} %), so a sparsity of "
                f"{goal.share:g} masks no more; ask for more than that"
            )


def mask_weights(network: nn.Module, request: SparseRequest, masks: Masks | None = None) -> WeightPruning:
    """Masks `network` in place, all steps one after the other.

    Args:
        network: The network.
        request: What to do.
        masks: What is masked in it already.

    Returns:
        What was done, and the masks for `prunecli.engine.holding.holding`.

    Raises:
        MethodError: It cannot be done.
    """
    pruning = WeightPruning(network, request, masks)
    for goal in pruning.goals:
        pruning.step(goal)
    return pruning


def parse_pattern(text: str) -> tuple[int, int] | None:
    """(N, M) of a pattern such as "2:4"; None without one.

    Raises:
        MethodError: It is not a pattern.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    kept, of = (int(part) for part in match.groups()) if match else (0, 0)
    if not 1 <= kept < of <= _MAX_RUN:
        raise MethodError(
            f"--pattern {text}: write N:M with 1 <= N < M <= {_MAX_RUN}, such as 2:4 for at most 2 of every 4 weights"
        )
    return kept, of


def _scope(name: str, method: WeightMethod, params: SparseParams) -> Scope:
    if method.solve is not None and params.scope == "global":
        raise MethodError(f"--scope global: {name} solves each layer by itself; leave it out")
    return method.scope if params.scope == "auto" else params.scope


def _goals(params: SparseParams, pattern: tuple[int, int] | None, now: float) -> list[Goal]:
    """What every step leads to."""
    if pattern is None:
        if params.sparsity <= now:  # `_require_progress` says what is wrong
            return [Goal(params.sparsity)]
        return [Goal(share) for share in amounts(params.schedule, params.steps, params.sparsity, now)]
    kept, of = pattern
    share = 1 - kept / of
    if params.sparsity not in (SparseParams.sparsity, share):
        raise MethodError(
            f"--sparsity {params.sparsity:g}: the pattern {params.pattern} sets the sparsity, {share:g}; leave it out"
        )
    parts = amounts(params.schedule, params.steps, 1.0, 0.0)
    return [Goal(share, (of - round(part * (of - kept)), of)) for part in parts]


def _rounds(goal: Goal, now: float, rounds: int) -> list[Goal]:
    """Goals on the way to `goal`, between which the share of weights that stay falls by the same factor.

    A pattern is decided in one round: the ones before would leave too few weights in some runs of M.
    """
    if rounds == 1 or goal.pattern is not None:
        return [goal]
    factor = (1 - goal.share) / (1 - now)
    return [*(Goal(1 - (1 - now) * factor ** (part / rounds)) for part in range(1, rounds)), goal]
