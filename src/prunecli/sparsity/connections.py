"""Connections of a network: edges from a living position before a layer, by a weight that is not zero, to one behind.

A position before a layer lives where spikes can arrive: where a mask keeps the neuron, also behind pooling. A position
behind it lives where a neuron that is kept takes it in. Padding has no edges. Counted for one sample and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from prunecli.inputs import Inputs, call, fitted, take_samples
from prunecli.measure.neurons import package_of, spiking_neurons
from prunecli.modes import evaluating
from prunecli.sparsity.spike_masks import masked_spikes

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Wiring:
    """What connects to what in a network with every weight and neuron alive.

    Attributes:
        edges: Connections of each layer, in the order in which layers run.
        positions: How often each weight of a layer is used: output positions.
        shapes: Shape of the output of each layer of neurons, without steps and samples.
        fan_out: Connections that leave a neuron, the mean over its layer.
        feeds: Layers of neurons that take in a layer's output position by position.
        reads: Layers of neurons that a layer's input comes from.
    """

    edges: dict[str, float]
    positions: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    fan_out: dict[str, float]
    feeds: dict[str, tuple[str, ...]]
    reads: dict[str, tuple[str, ...]]


def layers_with_weights(model: nn.Module) -> list[str]:
    """Convolutions and linear layers, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))]


def wiring_of(model: nn.Module, example: Inputs) -> Wiring:
    """Runs the network once on one sample, with neurons that all fire.

    Args:
        model: Unchanged.
        example: Inputs that it accepts; their values do not matter.
    """
    run = _Pass(model)
    run(example)
    leaves, fan_out = list(run.fired.values()), dict.fromkeys(run.fired, 0.0)
    reads: dict[str, tuple[str, ...]] = {}
    for name, edges in run.edges.items():
        gradients = _gradients(edges, leaves)
        reads[name] = tuple(neuron for neuron, own in zip(run.fired, gradients, strict=True) if own is not None)
        for neuron, own in zip(run.fired, gradients, strict=True):
            if own is not None:
                fan_out[neuron] += float(own.sum()) / run.steps(edges) / own.numel()
    feeds: dict[str, list[str]] = {name: [] for name in run.edges}
    for neuron, current in run.currents.items():
        for (name, output), own in zip(
            run.outputs.items(), _gradients(current, list(run.outputs.values())), strict=True
        ):
            shape = run.shapes[neuron]
            if own is not None and tuple(output.shape[-len(shape) :]) == shape:
                feeds[name].append(neuron)
    return Wiring(
        {name: float(edges.detach().sum()) / run.steps(edges) for name, edges in run.edges.items()},
        {name: edges.numel() / run.steps(edges) / run.widths[name] for name, edges in run.edges.items()},
        run.shapes,
        fan_out,
        {name: tuple(neurons) for name, neurons in feeds.items()},
        reads,
    )


def count_connections(
    model: nn.Module, example: Inputs, wiring: Wiring, weights: Masks | None = None, spikes: Masks | None = None
) -> dict[str, float]:
    """Living connections of each layer.

    Args:
        model: The network; unchanged.
        example: Inputs that it accepts.
        wiring: Its wiring.
        weights: Masks by layer; in others, zeros count as masked.
        spikes: Masks by layer of neurons; in others, those that the network has.
    """
    spikes = masked_spikes(model) | dict(spikes or {})
    run = _Pass(model, weights or {}, spikes, wiring)
    with torch.no_grad():
        run(example)
    living = {}
    for name, edges in run.edges.items():
        neurons = wiring.feeds.get(name, ())
        if neurons and all(neuron in spikes for neuron in neurons):
            edges = edges * torch.stack([spikes[neuron].to(edges) for neuron in neurons]).amax(dim=0)
        living[name] = float(edges.sum()) / run.steps(edges)
    return living


@dataclass
class _Pass:
    """A pass in which neurons return their masks, and layers count the edges into each of their outputs."""

    model: nn.Module
    weights: Masks = field(default_factory=dict)
    spikes: Masks = field(default_factory=dict)
    wiring: Wiring | None = None
    """Known from the first pass, in which everything lives."""
    fired: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    currents: dict[str, Tensor] = field(default_factory=dict)
    edges: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    _steps: int = 1

    def __call__(self, example: Inputs) -> None:
        hooks = [m.register_forward_hook(self._fire(name)) for name, m in spiking_neurons(self.model).items()]
        for name in layers_with_weights(self.model):
            hooks.append(self.model.get_submodule(name).register_forward_hook(self._count(name)))
        try:
            with _evaluating(self.model):
                call(self.model, fitted(take_samples(example, 0, 1), self.model))
        finally:
            for hook in hooks:
                hook.remove()

    def steps(self, edges: Tensor) -> int:
        """How many steps these edges were counted in, of one sample."""
        return self._steps if self._steps > 1 and edges.shape[0] == self._steps else 1

    def _fire(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            package = package_of(module)
            spikes = package.spikes(module, output)
            if package.takes_all_steps(module):
                self._steps = max(self._steps, len(spikes))
            shape = tuple(spikes.shape[2 if package.takes_all_steps(module) else 1 :])
            mask = self.spikes.get(name)
            if name not in self.fired:
                fires = torch.ones(shape, dtype=spikes.dtype, device=spikes.device)
                self.shapes[name] = shape
                self.fired[name] = fires.requires_grad_(self.wiring is None) if mask is None else mask.to(fires)
                self.currents[name] = args[0]
            fired = self.fired[name].expand(spikes.shape)
            return (fired, *output[1:]) if isinstance(output, tuple) else fired

        return hook

    def _count(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if name not in self.edges:
                self.edges[name] = _layer(module, self._alive(name, args[0]), self._living(name, module))
                self.widths[name] = int(module.weight.shape[0])  # type: ignore[index]
            if self.wiring is not None:
                return None
            cut = output.detach().requires_grad_()  # what follows depends on this layer, not on what is before it
            self.outputs.setdefault(name, cut)
            return cut

        return hook

    def _alive(self, name: str, arriving: Tensor) -> Tensor:
        """1 where something can arrive, else 0; only neurons stay silent."""
        if self.wiring is None:
            return _all_alive(arriving)
        return (arriving != 0).to(arriving) if self.wiring.reads.get(name) else torch.ones_like(arriving)

    def _living(self, name: str, module: nn.Module) -> Tensor:
        """The weights with which a layer counts."""
        weight: Any = module.weight
        mask = self.weights.get(name)
        if mask is None:
            mask = torch.ones_like(weight) if self.wiring is None else weight.detach() != 0
        return mask.to(weight.dtype)


def _layer(module: nn.Module, arriving: Tensor, weight: Tensor) -> Tensor:
    """What a layer would return with another weight and no bias, whatever steps and samples come first."""
    if isinstance(module, nn.Linear):
        return functional.linear(arriving, weight)
    layer: Any = module
    own = len(layer.kernel_size) + 1
    flat = arriving.reshape(-1, *arriving.shape[-own:])
    transposed = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
    if layer.transposed:
        settings = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        edges: Tensor = transposed[own - 1](flat, weight, None, *settings)
    else:
        edges = layer._conv_forward(flat, weight, None)
    return edges.reshape(*arriving.shape[:-own], *edges.shape[1:])


def _all_alive(arriving: Tensor) -> Tensor:
    """1 everywhere, with the gradient that each position's share in the sums before it gives."""
    if not arriving.requires_grad:
        return torch.ones_like(arriving)
    present = arriving.detach() != 0
    return torch.where(present, arriving / arriving.detach().where(present, 1), 1)


def _gradients(values: Tensor, of: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not values.requires_grad or not of:
        return (None,) * len(of)
    return torch.autograd.grad(values.sum(), of, retain_graph=True, allow_unused=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and parameters that take no gradients."""
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter, before in required.items():
            parameter.requires_grad_(before)
