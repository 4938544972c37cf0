"""How much experts matter: how often, and with which probability, tokens are sent to them, and their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.ablation import evaluating, measured_loss
from prunecli.criteria.base import Calibration, OwnShare
from prunecli.inputs import run_batch, sample_count, summing_dtype
from prunecli.phases import step
from prunecli.ranks import summed
from prunecli.surgery.experts.finding import ExpertLayer, listed_experts, stacked_tensors
from prunecli.surgery.experts.routing import Decision, Routers, Routing

ExpertScore = Callable[[nn.Module, Sequence[ExpertLayer], Calibration], dict[str, Tensor]]
"""From a network, its mixtures of experts and the data to scores by layer, shape (experts,), float64."""


def probability(model: nn.Module, layers: Sequence[ExpertLayer], calibration: Calibration) -> dict[str, Tensor]:
    """Mean probability of an expert, the softmax of a router's logits (Muzio et al., SEER-MoE, 2024, 2404.05089)."""

    def softmax(layer: ExpertLayer, decision: Decision) -> Tensor:
        logits = decision.logits.to(summing_dtype(decision.logits))
        return logits.flatten(0, -2).softmax(dim=-1).sum(dim=0)

    return _mean(model, layers, calibration, softmax)


def frequency(model: nn.Module, layers: Sequence[ExpertLayer], calibration: Calibration) -> dict[str, Tensor]:
    """Share of the tokens that are sent to an expert; where all are, its probability."""

    def counts(layer: ExpertLayer, decision: Decision) -> Tensor:
        if decision.indices is None:
            logits = decision.logits.to(summing_dtype(decision.logits))
            return logits.flatten(0, -2).softmax(dim=-1).sum(dim=0)
        return torch.bincount(decision.indices.flatten().cpu(), minlength=layer.experts)

    return _mean(model, layers, calibration, counts)


def norm(model: nn.Module, layers: Sequence[ExpertLayer], calibration: Calibration) -> dict[str, Tensor]:
    """L2 norm of an expert's weights."""
    scores = {}
    for layer in layers:
        squares = torch.zeros(layer.experts, dtype=torch.float64)
        for holder in layer.holders:
            module = model.get_submodule(holder)
            if layer.listed:
                experts = [module.get_submodule(name) for name in listed_experts(module)]
                squares += torch.stack([_square(list(expert.parameters())) for expert in experts])
            else:
                named = [getattr(module, name).detach() for name in stacked_tensors(module, layer.experts)]
                for tensor in (tensor for tensor in named if tensor.is_floating_point()):
                    squares += tensor.double().cpu().square().flatten(1).sum(dim=1)
        scores[layer.name] = squares.sqrt()
    return scores


def loss_without(model: nn.Module, layers: Sequence[ExpertLayer], calibration: Calibration) -> dict[str, Tensor]:
    """How much the mean loss of a sample rises when tokens are not sent to an expert, all others being there."""
    samples = sum(sample_count(inputs) for inputs, _ in calibration.pairs())
    measure = measured_loss(model, calibration)
    before = measure(model)
    scores = {layer.name: torch.zeros(layer.experts, dtype=torch.float64) for layer in layers}
    number, total = -1, sum(layer.experts for layer in layers)
    for layer in layers:
        for index in range(layer.experts):
            off = torch.arange(layer.experts) == index
            number += 1
            with step(number, total, "expert"), Routing(model, _routers([layer]), off={layer.router: off}):
                scores[layer.name][index] = (measure(model) - before) / samples
    return scores


def at_random(model: nn.Module, layers: Sequence[ExpertLayer], calibration: Calibration) -> dict[str, Tensor]:
    """Seeded random numbers: the baseline to beat."""
    return {
        layer.name: torch.rand(layer.experts, generator=calibration.generator, dtype=torch.float64) for layer in layers
    }


def _mean(
    model: nn.Module,
    layers: Sequence[ExpertLayer],
    calibration: Calibration,
    measure: Callable[[ExpertLayer, Decision], Tensor],
) -> dict[str, Tensor]:
    by_router = {layer.router: layer for layer in layers}
    sums = {layer.name: torch.zeros(layer.experts, dtype=torch.float64) for layer in layers}
    tokens = dict.fromkeys(sums, 0)

    def decide(decision: Decision) -> None:
        layer = by_router[decision.router]
        sums[layer.name] += measure(layer, decision).double().cpu()
        tokens[layer.name] += decision.logits[..., 0].numel()

    with evaluating(model), Routing(model, _routers(layers), decide=decide):
        for inputs, _ in OwnShare(calibration).pairs():
            run_batch(model, inputs)
    totals = dict(zip(sums, summed(sums.values()), strict=True))
    (counts,) = summed([torch.tensor(list(tokens.values()))])
    return {name: totals[name] / max(int(count), 1) for name, count in zip(tokens, counts, strict=True)}


def _routers(layers: Sequence[ExpertLayer]) -> list[Routers]:
    return [Routers(layer.name, layer.router, layer.experts) for layer in layers]


def _square(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().double().cpu().square().sum() for tensor in tensors]).sum()
