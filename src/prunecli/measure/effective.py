"""MACs of a network with zeros, if every product with a zero weight were left out."""

from __future__ import annotations

import torch
from torch import nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, call, fitted
from prunecli.measure.counts import cpu_inputs
from prunecli.measure.synops import OperationCounter, counting


def effective_macs(model: nn.Module, inputs: Inputs, total: int) -> int:
    """MACs with those left out that have a zero weight: each layer's times the share of its weights that is not zero.

    Args:
        model: Not changed; a copy runs once on the CPU.
        inputs: Inputs that it accepts.
        total: Its MACs, from `count_macs`.
    """
    network = copied(model).cpu().eval()
    counter = OperationCounter(network)
    with torch.no_grad(), counting(network, counter):
        call(network, cpu_inputs(fitted(inputs, network)))
    weights, nonzero = _weights_by_module(network)
    spared = 0.0
    for layer in counter.layers(1):
        if nonzero.get(layer.name):
            # What the counter says is for weights that are not zero.
            spared += layer.dense * (weights[layer.name] / nonzero[layer.name] - 1)
    return round(total - spared)


def _weights_by_module(network: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Weights, and non-zero ones, of matrices and kernels, under the names that the counter gives them."""
    sizes: dict[str, int] = {}
    nonzero: dict[str, int] = {}
    for full, parameter in network.named_parameters():
        if parameter.dim() > 1:
            name = full.rpartition(".")[0] or full
            sizes[name] = sizes.get(name, 0) + parameter.numel()
            nonzero[name] = nonzero.get(name, 0) + int(torch.count_nonzero(parameter))
    return sizes, nonzero
