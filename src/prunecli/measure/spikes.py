"""Firing statistics of a spiking network, and how sparse it is by NeuroBench's definitions (Yik et al., 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.inputs import summing_dtype
from prunecli.measure.neurons import package_of, spiking_neurons

_SATURATED = 0.999
"""A channel that fires in at least this share of all steps and positions carries almost no information."""
_SYNAPTIC = (nn.modules.conv._ConvNd, nn.Linear)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NO_ACTIVATIONS = ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")


@dataclass(frozen=True)
class NeuronFigures:
    """Firing statistics of one layer of neurons.

    Attributes:
        name: Dotted name.
        rate: Spikes per neuron and step: the mean over steps, images and positions.
        channel_rates: The rate of each channel, which is the dimension after steps and images.
        silent: Channels that never fire.
        saturated: Channels that fire in at least 99.9 % of all steps and positions.
    """

    name: str
    rate: float
    channel_rates: tuple[float, ...]
    silent: tuple[int, ...]
    saturated: tuple[int, ...]

    def quantile(self, share: float) -> float:
        """The quantile of the channels' rates for a share of the channels."""
        return float(np.quantile(self.channel_rates, share))


class FiringStatistics:
    """Accumulates one sum per channel; the outputs of neurons are not kept.

    Attributes:
        images: Number of images so far; see `end_pass`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.images = 0
        self._model = model
        self._neurons = spiking_neurons(model)
        self._spikes: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._steps: dict[str, int] = {}
        self._longest = 0
        self._zeros = self._activations = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Accumulates the outputs of neurons and activation functions of passes inside the block."""
        hooks = []
        for name, module in self._model.named_modules():
            if name in self._neurons or _is_activation(module):
                hooks.append(module.register_forward_hook(lambda m, _a, out, name=name: self._add(name, m, out)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def end_pass(self, images: int) -> None:
        """Ends a pass of this many images."""
        self.images += images
        self._longest = max(self._longest, *self._steps.values(), 0)
        self._steps = {}

    @property
    def timesteps(self) -> int:
        """Time steps of a pass: the most that any neuron made."""
        return self._longest

    @property
    def activation_sparsity(self) -> float:
        """Share of zeros in the outputs of neurons and activation functions."""
        return self._zeros / max(self._activations, 1)

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron and step, over all neurons of the network."""
        return sum(float(spikes.sum()) for spikes in self._spikes.values()) / max(sum(self._outputs().values()), 1)

    def neurons(self) -> tuple[NeuronFigures, ...]:
        """Statistics of every layer of neurons that ran, in the order of the model."""
        figures = []
        for name in self._neurons:
            if name not in self._spikes:
                continue
            rates = self._spikes[name] / self._counts[name]
            figures.append(
                NeuronFigures(
                    name=name,
                    rate=float(rates.mean()),
                    channel_rates=tuple(rates.tolist()),
                    silent=tuple((self._spikes[name] == 0).nonzero().flatten().tolist()),
                    saturated=tuple((rates >= _SATURATED).nonzero().flatten().tolist()),
                )
            )
        return tuple(figures)

    def _outputs(self) -> dict[str, int]:
        return {name: count * len(self._spikes[name]) for name, count in self._counts.items()}

    def _add(self, name: str, module: nn.Module, output: object) -> None:
        package = package_of(module) if name in self._neurons else None
        if package is not None:
            output = package.spikes(module, output)
        if not isinstance(output, Tensor):
            return
        self._activations += output.numel()
        self._zeros += output.numel() - int(torch.count_nonzero(output))
        if package is None:
            return
        steps = package.takes_all_steps(module)
        channel = min(2 if steps else 1, output.dim() - 1)
        others = [dim for dim in range(output.dim()) if dim != channel]
        spikes = output.detach().sum(others, dtype=summing_dtype(output)).cpu().double()
        before = self._spikes.get(name)
        self._spikes[name] = spikes if before is None else before + spikes
        self._counts[name] = self._counts.get(name, 0) + output.numel() // output.shape[channel]
        before_steps = self._steps.get(name, 0)  # of this pass; a module may be called several times
        self._steps[name] = max(before_steps, output.shape[0]) if steps else before_steps + 1


def connection_sparsity(model: nn.Module) -> float:
    """Share of zeros in the weights of convolutions, linear and recurrent layers, without biases."""
    zeros = total = 0
    for weight in _connections(model):
        zeros += weight.numel() - int(torch.count_nonzero(weight))
        total += weight.numel()
    return zeros / max(total, 1)


def footprint_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; tied ones are counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _connections(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _SYNAPTIC):
            yield module.weight.detach()
        elif isinstance(module, _RECURRENT):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight"):
                    yield parameter.detach()


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and type(module).__name__ not in _NO_ACTIVATIONS
