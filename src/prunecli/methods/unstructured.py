"""`unstructured`: masks of weights and of neurons that are learned together while the network trains.

Shi et al., Towards Energy Efficient Spiking Neural Networks: An Unstructured Pruning Framework (ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Masks
from prunecli.engine.hooks import Batch, State, Training
from prunecli.errors import MethodError
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.layer_lists import chosen_layers
from prunecli.methods.step_loss import StepLoss
from prunecli.methods.trained import PruningHook, TrainedContext
from prunecli.methods.unstructured_params import UnstructuredParams
from prunecli.ranks import summed_by_name, together
from prunecli.report.table import Table
from prunecli.sparsity.budget import Budget
from prunecli.sparsity.connections import layers_with_weights, wiring_of
from prunecli.sparsity.dead import alive_units
from prunecli.sparsity.penalty import Penalty
from prunecli.sparsity.soft_masks import SoftMask, bare_spikes, harden_weight, soften_spikes, soften_weight
from prunecli.sparsity.spike_masks import mask_spikes, masked_spikes
from prunecli.sparsity.temperature import temperatures

_MEMORY = 0.99
"""Share of a running firing rate that stays after each batch."""
_MASKED = -1e3
"""A score that no learning brings back."""
_ADJUSTED = 10.0
"""The penalty stays within this factor of where it began."""


class Unstructured(PruningHook):
    """Learns masks with a penalty on the connections they leave.

    Args:
        model: The network that is trained. It gets soft masks, which `end` hardens.
        params: See `UnstructuredParams`.
        context: The groups that may shrink, and inputs.

    Raises:
        MethodError: Nothing is to be masked, a layer does not exist, or a target cannot be reached.
    """

    name = "unstructured"

    def __init__(self, model: nn.Module, params: UnstructuredParams, context: TrainedContext) -> None:
        self._model, self._params, self._context = model, params, context
        weights, neurons = _layers(model, params)
        self._wiring = wiring_of(model, context.example_inputs)
        kept = {name for name in self._wiring.edges if context.kept(name)}
        weights = [name for name in self._wiring.edges if name in weights and name not in kept]
        spared = {neuron for name in kept for neuron in self._wiring.feeds[name]}
        neurons = [name for name in neurons if name not in spared and not context.kept(name)]
        if not weights and not neurons:
            raise MethodError("--keep leaves nothing to mask; name fewer layers")
        self._temperatures = temperatures(params.temperatures, context.epochs)
        self._before = masked_spikes(model)
        self._weights = {
            name: soften_weight(model.get_submodule(name), self._scores(model.get_parameter(f"{name}.weight") != 0, 0))
            for name in weights
        }
        self._neurons = {
            name: soften_spikes(model.get_submodule(name), self._scores(self._alive(name), 1)) for name in neurons
        }
        by_rate = params.penalty_by == "synops" or params.synops is not None
        self._penalty = Penalty(self._wiring, self._weights, self._neurons, by_rate=by_rate)
        self._budget = Budget(model, context.example_inputs, self._wiring, self._weights, self._neurons)
        self._target = params.connections if params.connections is not None else params.synops
        self._budget.check(self._target, "synops" if params.synops is not None else "connections")
        self._loss = StepLoss(model, context.example_inputs, params)
        self._factor, self._rates, self._updates = params.penalty, dict[str, float](), 0
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self._figures: dict[str, JsonValue] = {}
        self._kept: dict[str, Tensor] = {}
        self._share = 1.0
        self._first: float | None = None

    def _scores(self, alive: Tensor, kind: int) -> Tensor:
        """Scores at the start; what was masked before stays so."""
        init = self._params.mask_init
        noise = torch.randn(alive.shape, generator=self._context.generator)
        return (init[kind] + init[2 + kind] * noise).to(alive.device).where(alive, _MASKED)

    def _alive(self, name: str) -> Tensor:
        return self._before.get(name, torch.ones(self._wiring.shapes[name], dtype=torch.bool))

    def begin(self, training: Training) -> None:
        """Creates the optimizer of the masks."""
        params, scores = self._params, [mask.learn() for mask in self._masks()]
        if params.mask_optimizer == "adam":
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam(
                scores, lr=params.mask_lr, weight_decay=params.mask_weight_decay
            )
        else:
            self._optimizer = torch.optim.SGD(
                scores, lr=params.mask_lr, momentum=params.momentum, weight_decay=params.mask_weight_decay
            )
        self._steps = training.steps
        self._watching = [
            self._model.get_submodule(name).register_forward_pre_hook(self._watch(name)) for name in self._wiring.edges
        ]
        self._loss.begin()
        self._set_temperature()

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Adds the penalty to the loss, which may be another one than the task's."""
        for name, now in _rates_of(self._seen, counts=batch.counts).items():
            before = self._rates.get(name)
            self._rates[name] = now if before is None else _MEMORY * before + (1 - _MEMORY) * now
        self._seen = {}
        return self._loss(loss, batch) + self._factor * self._penalty(self._rates_by_name())

    def before_step(self) -> None:
        """Updates the masks."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def after_step(self) -> None:
        """Makes the masks steeper."""
        self._updates += 1
        self._set_temperature()

    def epoch_end(self, epoch: int) -> None:
        """On the way to a target, adjusts the penalty, and closes or opens masks in the order of their scores."""
        rates = self._rates_by_name() if self._params.synops is not None else None
        self._share = self._budget.share(rates)
        if self._target is None:
            return
        self._first = max(self._share, self._target) if self._first is None else self._first
        planned = self._budget.planned(self._first, self._target, epoch / self._context.epochs)
        factor = self._factor * (self._share / planned) ** 0.5
        self._factor = min(max(factor, self._params.penalty / _ADJUSTED), self._params.penalty * _ADJUSTED)
        self._budget.reach(planned, rates)
        self._share = self._budget.share(rates)

    def score(self, epoch: int, score: float) -> float | None:
        """The last epoch is kept: earlier ones have more connections and softer masks."""
        return None

    def tables(self) -> Sequence[Table]:
        """What would stay in each layer if the masks were hard now."""
        rows = [
            (name, kind, f"{mask.kept.float().mean() * 100:.2f}")
            for kind, masks in (("weights", self._weights), ("neurons", self._neurons))
            for name, mask in masks.items()
        ]
        title = (
            f"connections {self._share * 100:.2f} %, penalty {self._factor:.3g}, temperature "
            f"{self._temperatures[0].at(self._updates / self._steps):.4g}"
        )
        return [Table(("layer", "masked", "kept %"), rows, title=title, numeric=(2,))]

    def end(self) -> None:
        """Hardens the masks."""
        for hook in self._watching:
            hook.remove()
        self._loss.end()
        rates = self._rates_by_name() if self._params.synops is not None else None
        soft = self._context.validate()
        if self._target is not None and self._budget.share(rates) > self._target:
            self._budget.reach(self._target, rates)
        for mask in self._masks():
            mask.hard = True
        hard = self._context.validate()
        share, synops = self._budget.share(None), self._budget.share(self._rates_by_name())
        for name in self._weights:
            harden_weight(self._model.get_submodule(name))
        kept = {name: mask.kept & self._alive(name).to(mask.scores.device) for name, mask in self._neurons.items()}
        for name, stays in kept.items():
            neuron = self._model.get_submodule(name)
            bare_spikes(neuron)
            mask_spikes(neuron, stays)
        self._kept = alive_units(self._model, self._context.selection.groups, kept) if self._params.squeeze else {}
        weights = [self._model.get_parameter(f"{name}.weight") for name in self._weights]
        self._figures = {
            "connections_kept": share,
            "estimated_synops_kept": synops,
            "weights_kept": _share_of([weight.detach() != 0 for weight in weights]),
            "neurons_kept": _share_of(list(kept.values())),
            "penalty_at_the_end": self._factor,
            **({"validation_soft": soft} if soft is not None else {}),
            **({"validation_hard": hard} if hard is not None else {}),
        }

    def keep(self) -> Mapping[str, Tensor]:
        """Everything, unless dead channels are removed."""
        return self._kept

    def masks(self) -> Masks:
        """What stays zero."""
        shapes = {name: self._wiring.shapes[name] for name in self._neurons}
        return Masks(weights=[f"{name}.weight" for name in self._weights], spikes=shapes)

    def figures(self) -> Mapping[str, JsonValue]:
        """Connections, weights and neurons that are left, and accuracy with soft and with hard masks."""
        return self._figures

    def state(self) -> State:
        """Counters, rates and the optimizer; the scores are in the network."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "factor": self._factor,
            "rates": dict(self._rates),
            "updates": self._updates,
            "share": self._share,
            "first": self._first,
            "threshold": self._masks()[0].threshold,
        }

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._factor, self._rates = state["factor"], dict(state["rates"])
        self._updates, self._share, self._first = state["updates"], state["share"], state["first"]
        self._budget.set_threshold(state["threshold"])
        self._set_temperature()

    def _masks(self) -> list[SoftMask]:
        return [*self._weights.values(), *self._neurons.values()]

    def _set_temperature(self) -> None:
        of_weights, of_neurons = (each.at(self._updates / self._steps) for each in self._temperatures)
        for mask in self._weights.values():
            mask.temperature = of_weights
        for mask in self._neurons.values():
            mask.temperature = of_neurons

    def _watch(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module.training:
                arriving = args[0].detach()
                self._seen[name] = torch.count_nonzero(arriving), arriving.numel()

        return hook

    def _rates_by_name(self) -> dict[str, float]:
        """Rates of what layers take in, and of neurons: what the layers behind them take in."""
        rates = dict(self._rates)
        for name, neurons in self._wiring.reads.items():
            rates.update({neuron: self._rates[name] for neuron in neurons if name in self._rates})
        return rates


def _rates_of(seen: Mapping[str, tuple[Tensor, int]], *, counts: bool) -> dict[str, float]:
    """Shares of values that are not zero, in the batches of all processes that train together.

    Args:
        seen: By layer, how many are not zero, and how many there are.
        counts: Whether this process's batch counts; else it stands in for one of no sample.
    """
    if not together():
        return {name: float(active / number) for name, (active, number) in seen.items()}
    own = {
        name: torch.tensor([float(active), float(number)]).double() * counts for name, (active, number) in seen.items()
    }
    return {name: float(active / number) for name, (active, number) in summed_by_name(own).items() if number}


def _layers(model: nn.Module, params: UnstructuredParams) -> tuple[list[str], list[str]]:
    """Layers whose weights, and layers of neurons that are masked.

    Raises:
        MethodError: Nothing is left to mask, or a layer does not exist.
    """
    if not params.mask_weights and not params.mask_neurons:
        raise MethodError("--no-mask-weights and --no-mask-neurons leave nothing to learn; leave one of them out")
    if params.connections is not None and params.synops is not None:
        raise MethodError("--connections and --synops are two targets; give one of them")
    if len(params.mask_init) != 4:  # two means and two deviations
        raise MethodError(f"--mask-init has {len(params.mask_init)} values; give 4, for instance 0,0,0,0")
    weights = chosen_layers(layers_with_weights(model), params.weight_layers, "--weight-layers", "layers with weights")
    spiking = list(spiking_neurons(model))
    if params.neuron_layers and not spiking:
        raise MethodError("--neuron-layers: the network has no spiking neurons; leave it out to mask weights alone")
    neurons = chosen_layers(spiking, params.neuron_layers, "--neuron-layers", "layers of neurons")
    weights, neurons = weights if params.mask_weights else [], neurons if params.mask_neurons else []
    if not weights and not neurons:
        raise MethodError("there is nothing to mask: the network has no spiking neurons, and weights are left out")
    return weights, neurons


def _share_of(masks: Sequence[Tensor]) -> float:
    total = sum(mask.numel() for mask in masks)
    return sum(int(mask.sum()) for mask in masks) / total if total else 1.0
