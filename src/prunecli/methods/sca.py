"""Pruning and regrowing channels by their activity while a network trains.

Li et al., "Towards Efficient Deep Spiking Neural Networks Construction with Spiking Activity based Pruning", ICML 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from prunecli.engine.hooks import Batch, State, Training
from prunecli.errors import MethodError, VerificationError
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.layer_lists import chosen_layers
from prunecli.methods.ranking import why_nothing
from prunecli.methods.sca_activity import activity_of, refuse_restless_neurons
from prunecli.methods.sca_choice import Prunings, choose
from prunecli.methods.sca_params import ScaParams
from prunecli.methods.trained import PruningHook, TrainedContext
from prunecli.ranks import summed_by_name, together, world_size
from prunecli.report.table import Table
from prunecli.surgery.gates import ChannelGate, fold_all, gate_points, reading_points
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.proof.verify import differs_from_removal
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS

_NO_PLACE = "there is no layer at which its channels could be closed"
_NOT_REMOVED = "closing its channels is not the same as removing them"


class Sca(PruningHook):
    """Closes channels that are hardly active at the end of epochs, and opens those whose gates the loss asks for.

    The gates multiply what passes between modules, so they hold whatever the optimizer does to weights, and closed
    channels have gradients. At the end they are folded into weights: the network computes without gates what it
    computed with them.

    Args:
        model: The network that is trained.
        params: Shares, and how often.
        context: The groups that may shrink.

    Raises:
        MethodError: The parameters do not fit the network, or no group can be gated.
    """

    name = "sca"

    def __init__(self, model: nn.Module, params: ScaParams, context: TrainedContext) -> None:
        self._model, self._params = model, params
        groups, left_alone = _taking_part(model, params, context)
        self._activity = activity_of(model, groups)
        left_alone |= self._activity.unseen
        refuse_restless_neurons(model, groups, context.example_inputs)
        gates, unfit = _gates(model, [group for group in groups if group.name not in left_alone], context)
        self._gates, self._left_alone = {gate.group.name: gate for gate in gates}, left_alone | unfit
        if not self._gates:
            causes = list(self._left_alone.items()) or [("", why_nothing(context.selection.untouched))]
            raise MethodError(
                f"sca has no layer to prune: {': '.join(filter(None, causes[0]))}; use another method, for instance l1"
            )
        self._least = {name: min(params.min_width, gate.group.units) for name, gate in self._gates.items()}
        total = sum(gate.group.units for gate in gates)
        self._prunings = Prunings(params, context.epochs, total, sum(self._least.values()))
        self._prunings.check()
        self._penalised = _weights_in_front(model, gates, context)
        self._watching = ExitStack()
        self._ended = 0
        self._history: list[dict[str, int]] = []
        self._regrown = {name: torch.zeros(gate.group.units, dtype=torch.bool) for name, gate in self._gates.items()}
        self._sums: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._pull: dict[str, Tensor] = {}
        self._own = _OwnStep()
        self._forget()

    def begin(self, training: Training) -> None:
        """Puts the gates, all open, on the network."""
        for gate in self._gates.values():
            gate.to(training.device)
            gate.attach(self._model)

    def epoch_start(self, epoch: int, batch: int) -> None:
        """Watches the network if this epoch ends in a pruning."""
        due = self._prunings.due(epoch) and epoch > self._ended
        for gate in self._gates.values():
            gate.factors.requires_grad_(due)
        if due:
            self._activity.watch(self._see, self._watching)

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Adds the L1 penalty, if there is one."""
        self._own.take(counts=batch.counts)
        if not self._params.l1:
            return loss
        return loss + self._params.l1 * torch.stack([weight.abs().sum() for weight in self._penalised]).sum()

    def before_step(self) -> None:
        """Notes the size of the gates' gradients, over the batches of this step in all processes."""
        taken = {name: gate.taken_gradient() for name, gate in self._gates.items()}
        pulls = {name: gradient.detach() for name, gradient in taken.items() if gradient is not None}
        if together():
            pulls = {name: total / world_size() for name, total in summed_by_name(pulls).items()}
            for watched, total, calls in self._own.over_ranks():
                self._add(watched, total, calls)
        for name, gradient in pulls.items():
            self._pull[name] = self._pull[name] + gradient.abs().double().cpu()
        self._steps += 1

    def epoch_end(self, epoch: int) -> None:
        """Prunes and regrows, if it is time."""
        self._watching.close()
        if epoch <= self._ended:  # a run that was stopped during validation ends this epoch twice
            return
        self._ended = epoch
        if self._prunings.due(epoch):
            self._prune(epoch)
        self._forget()

    def score(self, epoch: int, score: float) -> float | None:
        """Rules out epochs whose channels are not those that are left in the end."""
        return score if epoch >= self._prunings.last else None

    def tables(self) -> Sequence[Table]:
        """Channels of each layer, after the last pruning."""
        rows = []
        for name, gate in self._gates.items():
            opened = int(gate.opened.sum())
            numbers = (gate.group.units, opened, gate.group.units - opened, int(self._regrown[name].sum()))
            rows.append((name, *map(str, numbers)))
        return [
            Table(("layer", "channels", "alive", "pruned", "regrown"), rows, title="channels", numeric=(1, 2, 3, 4))
        ]

    def end(self) -> None:
        """Takes the gates off, and makes what is closed zero."""
        self._watching.close()
        for gate in self._gates.values():
            gate.detach()
        fold_all(self._model, self._gates.values())

    def keep(self) -> Mapping[str, Tensor]:
        """The open channels."""
        return {name: gate.opened.nonzero().flatten() for name, gate in self._gates.items()}

    def figures(self) -> Mapping[str, JsonValue]:
        """Channels in total, and after each pruning; layers that took no part, and why."""
        opened = sum(int(gate.opened.sum()) for gate in self._gates.values())
        total = self._prunings.total
        prunings: list[JsonValue] = [dict(entry) for entry in self._history]
        return {
            "channels": total,
            "alive": opened,
            "pruned": total - opened,
            "regrown": sum(entry["regrown"] for entry in self._history),
            "connectivity": round(opened / total, 6),
            "prunings": prunings,
            "left_alone": dict(self._left_alone),
        }

    def state(self) -> State:
        """Gates, sums of this epoch and what has happened."""
        return {
            "opened": {name: gate.opened for name, gate in self._gates.items()},
            "regrown": dict(self._regrown),
            "activity": dict(self._sums),
            "calls": dict(self._calls),
            "pull": dict(self._pull),
            "steps": self._steps,
            "ended": self._ended,
            "history": [dict(entry) for entry in self._history],
        }

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        for name, gate in self._gates.items():
            gate.open_only(state["opened"][name])
        self._regrown, self._sums = dict(state["regrown"]), dict(state["activity"])
        self._calls, self._pull = dict(state["calls"]), dict(state["pull"])
        self._steps, self._ended = state["steps"], state["ended"]
        self._own = _OwnStep()
        self._history = [dict(entry) for entry in state["history"]]

    def _see(self, watched: str, mean: Tensor) -> None:
        if together():
            self._own.see(watched, mean)
        else:
            self._add(watched, mean, 1)

    def _add(self, watched: str, total: Tensor, calls: int) -> None:
        before = self._sums.get(watched)
        self._sums[watched] = total if before is None else before.to(total.device) + total
        self._calls[watched] = self._calls.get(watched, 0) + calls

    def _forget(self) -> None:
        self._sums, self._calls, self._steps = {}, {}, 0
        self._pull = {name: torch.zeros(gate.group.units, dtype=torch.float64) for name, gate in self._gates.items()}

    def _prune(self, epoch: int) -> None:
        scores = self._activity.scores({name: total / self._calls[name] for name, total in self._sums.items()})
        pull = {name: total / max(self._steps, 1) for name, total in self._pull.items()}
        # Closed channels come back by their gradients alone: at a v_reset that is not zero, |v| of silence is large.
        own = {name: scores[name].masked_fill(~gate.opened, -1) for name, gate in self._gates.items()}
        kept, regrown = self._prunings.counts(epoch)
        more = max(kept - sum(int(gate.opened.sum()) for gate in self._gates.values()), 0)
        kept, regrown = kept - more, regrown + more
        choice = choose(own, pull, self._least, kept, regrown)
        for name, gate in self._gates.items():
            gate.open_only(choice.opened[name])
        self._regrown = choice.regrown
        opened = sum(int(mask.sum()) for mask in choice.opened.values())
        self._history.append(
            {"epoch": epoch, "alive": opened, "pruned": self._prunings.total - opened, "regrown": regrown}
        )


class _OwnStep:
    """What this process has watched since the last step, where several train together.

    It is added up over them at every step. So all of them know the same of a run at any time, and go on from any state.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[str, Tensor]] = []
        self._step: dict[str, Tensor] = {}

    def see(self, watched: str, mean: Tensor) -> None:
        """The mean of one call."""
        self._seen.append((watched, mean.cpu()))

    def take(self, *, counts: bool) -> None:
        """Ends a batch, which may only stand in for one of no sample."""
        for watched, mean in self._seen if counts else ():
            own = torch.cat([mean, torch.ones_like(mean[:1])])
            self._step[watched] = self._step[watched] + own if watched in self._step else own
        self._seen = []

    def over_ranks(self) -> list[tuple[str, Tensor, int]]:
        """What was watched, with the sum of the means and the number of calls in all processes; begins anew."""
        own, self._step = self._step, {}
        return [(watched, total[:-1], int(total[-1])) for watched, total in summed_by_name(own).items()]


def _taking_part(
    model: nn.Module, params: ScaParams, context: TrainedContext
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that `pruning_nodes` names, and why others are left alone."""
    groups = list(context.selection.groups)
    if not params.pruning_nodes:
        return groups, {}
    neurons, names = list(spiking_neurons(model)), [group.name for group in groups]
    by_number, what = (neurons, "layers of spiking neurons") if neurons else (names, "layers that may shrink")
    chosen = set(chosen_layers(by_number, params.pruning_nodes, "--pruning-nodes", what, names))
    taking_part = []
    for group in groups:
        emitting = {emission.module for emission in group.emissions}
        if group.name in chosen or (emitting and emitting <= chosen):
            taking_part.append(group)
    reason = "not all of its neurons are among --pruning-nodes" if neurons else "it is not among --pruning-nodes"
    return taking_part, {group.name: reason for group in groups if group not in taking_part}


def _gates(
    model: nn.Module, groups: Sequence[ChannelGroup], context: TrainedContext
) -> tuple[list[ChannelGate], dict[str, str]]:
    """Gates for those groups where closing channels is the same as removing them, and reasons for the others.

    In front of neurons they stand behind normalisations. The derivative of a ReLU at zero is zero, so without neurons
    they stand in front of the layers that read the channels, unless only the other way closes them.
    """
    followed = context.selection.trace.followed
    assert followed is not None
    kinds = (gate_points,) if spiking_neurons(model) else (reading_points, gate_points)
    left_alone = {group.name: _NO_PLACE for group in groups}
    fit: dict[str, ChannelGate] = {}
    for points_of in kinds:
        points = {group.name: points_of(model, group, followed) for group in groups if group.name not in fit}
        gates = [ChannelGate(group, points[group.name]) for group in groups if points.get(group.name)]
        unfit = {gate.group.name for gate in _unfit(model, gates, context)}
        left_alone |= dict.fromkeys(unfit, _NOT_REMOVED)
        fit |= {gate.group.name: gate for gate in gates if gate.group.name not in unfit}
    gates = [fit[group.name] for group in groups if group.name in fit]
    return gates, {name: reason for name, reason in left_alone.items() if name not in fit}


def _weights_in_front(model: nn.Module, gates: Sequence[ChannelGate], context: TrainedContext) -> list[Tensor]:
    """The scales of the last normalisations of each group, or the weights of layers without one; each once."""
    followed = context.selection.trace.followed
    assert followed is not None
    points = (point for gate in gates for point in gate_points(model, gate.group, followed))
    names = dict.fromkeys(point.module for point in points)
    weights = [getattr(model.get_submodule(name), "weight", None) for name in names]
    return [weight for weight in weights if isinstance(weight, nn.Parameter)]


def _unfit(model: nn.Module, gates: Sequence[ChannelGate], context: TrainedContext) -> list[ChannelGate]:
    """The gates with which the network does not compute what it computes without the channels, found by halving."""
    if not gates or not _differs(model, gates, context):
        return []
    if len(gates) == 1:
        return list(gates)
    half = len(gates) // 2
    unfit = [*_unfit(model, gates[:half], context), *_unfit(model, gates[half:], context)]
    return unfit or list(gates)  # wrong only together


def _differs(model: nn.Module, gates: Sequence[ChannelGate], context: TrainedContext) -> bool:
    keep = {gate.group.name: torch.arange(0, gate.group.units, 2) for gate in gates if gate.group.units > 1}
    trials = [ChannelGate(gate.group, gate.points) for gate in gates]
    for trial in trials:
        trial.open_only(torch.arange(trial.group.units) % 2 == 0)

    def attached(network: nn.Module) -> nn.Module:
        for trial in trials:
            trial.attach(network)
        return network

    check = partial(differs_from_removal, model, traced=context.selection.trace, keep=keep)
    try:
        closings: list[Any] = [attached, partial(fold_all, gates=trials)]
        return any(check(close=close, inputs=context.example_inputs) for close in closings)
    except (VerificationError, *RUNTIME_ERRORS):
        return True
