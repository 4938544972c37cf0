"""Synaptic flow, after Tanaka et al. (Pruning neural networks without any data by iteratively conserving synaptic flow,
NeurIPS 2020).

The flow R is the sum of the outputs for an input of ones of the network with |w| in place of w, in which everything
that is not linear is left out: biases and the means of batch normalisations are zero, their scales and deviations stay;
other normalisations, activations and spiking neurons hand on what they get. In double precision: R of a deep network
does not fit into single precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.copying import copied
from prunecli.criteria.base import Calibration
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod, by_name
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, call, explained, fitted, logits, map_tensors
from prunecli.measure.neurons import spiking_neurons
from prunecli.surgery.tracing.running import without_fastpath

_ROUNDS = 100
_BLOCKED = "some of its weights carry no positive flow even before anything is masked, so SynFlow says nothing about it"
_NOT_POINTWISE = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU)
_ACTIVATIONS = tuple(
    kind
    for kind in vars(activation).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == activation.__name__
)


def synflow(model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration) -> dict[str, Tensor | str]:
    """w dR/dw of the positive network.

    Layers through parts of which nothing flows even where no weight is masked are left alone: their scores of zero
    would say nothing about the weights.
    """
    if calibration.example_inputs is None:
        raise MethodError("synflow needs example inputs: pass those that the network accepts")
    network = _positive(model)
    parameters = by_name(weights, network)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    flows = _flows(network, parameters, calibration.example_inputs)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(1 / parameter[0].numel())
    open_flows = _flows(network, parameters, calibration.example_inputs)
    scores: dict[str, Tensor | str] = {}
    for weight in weights:
        passes = open_flows.get(weight.name)
        if passes is None or not bool((passes > 0).all()):
            scores[weight.name] = _BLOCKED
        else:
            scores[weight.name] = weight.values().abs() * flows[weight.name]
    return scores


def _flows(network: nn.Module, parameters: Any, example: Inputs) -> dict[str, Tensor]:
    """dR/dw, which is not negative.

    Raises:
        MethodError: The network does not run that way, or R is not finite.
    """
    inputs = map_tensors(example, lambda tensor: torch.ones_like(tensor) if tensor.is_floating_point() else tensor)
    why = "the network does not run with weights of one sign, in double precision, on an input of ones"
    with without_fastpath(), torch.enable_grad():
        with explained(why, MethodError, "choose magnitude or snip instead"):
            total = logits(call(network, fitted(inputs, network))).sum()
        if not bool(torch.isfinite(total)) or not total.requires_grad:
            raise MethodError("synflow: the flow of this network is not finite; choose magnitude or snip instead")
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name: gradient.detach() for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def _positive(model: nn.Module) -> nn.Module:
    """A linear copy in double precision with all weights positive."""
    network = copied(model).double().eval().requires_grad_(False)
    neurons = {id(module) for module in spiking_neurons(network).values()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
        for module in network.modules():
            bias = module._parameters.get("bias")
            if bias is not None:
                bias.zero_()
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.zero_()
            elif _hands_on(module) or id(module) in neurons:
                module.register_forward_hook(_what_it_gets, with_kwargs=True)
    return network


def _hands_on(module: nn.Module) -> bool:
    if isinstance(module, _NOT_POINTWISE):
        return False
    return isinstance(module, _ACTIVATIONS) or "Norm" in type(module).__name__


def _what_it_gets(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    values = [*args, *kwargs.values()]
    first = next((value for value in values if isinstance(value, Tensor)), None)
    return first if isinstance(output, Tensor) and first is not None and first.shape == output.shape else output


SYNFLOW = WeightMethod(synflow, rounds=_ROUNDS)
