"""Energy of a network's operations at 45 nm CMOS, and the one pass over data that a spiking network's takes.

Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014: a 32-bit floating-point multiplication
takes 3.7 pJ and an addition 0.9 pJ. Memory, control and everything element-wise are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import DataError
from prunecli.inputs import model_device
from prunecli.measure.neurons import without_memory
from prunecli.measure.spikes import FiringStatistics, NeuronFigures
from prunecli.measure.synops import LayerOperations, OperationCounter, counting

MAC_PJ = 4.6
AC_PJ = 0.9
FORMULA = f"{MAC_PJ} pJ x MACs + {AC_PJ} pJ x ACs (45 nm)"


def energy_nj(macs: float, acs: float = 0.0) -> float:
    """Nanojoules of so many multiply-accumulates and accumulates."""
    return (MAC_PJ * macs + AC_PJ * acs) / 1000


@dataclass(frozen=True)
class Profile:
    """What a network does over data, for one image.

    Attributes:
        images: Images that were run.
        timesteps: Steps for each image; 0 for a network without spiking neurons.
        firing_rate: Spikes per neuron and step.
        activation_sparsity: Share of zeros that neurons and activation functions gave out.
        neurons: How each layer of neurons fires.
        layers: What each layer multiplies and accumulates.
        uncounted: Operators that may multiply and were not counted; then operations and energy are lower bounds.
    """

    images: int
    timesteps: int
    firing_rate: float
    activation_sparsity: float
    neurons: tuple[NeuronFigures, ...]
    layers: tuple[LayerOperations, ...]
    uncounted: tuple[str, ...] = ()

    def total(self, figure: str) -> float:
        """A figure of `LayerOperations`, added up over layers."""
        return float(sum(getattr(layer, figure) for layer in self.layers))

    @property
    def synops(self) -> float:
        """Synaptic operations: accumulates driven by spikes, an integer read as that many."""
        return self.total("integer_acs")

    @property
    def energy_nj(self) -> float:
        """Nanojoules with integers multiplied."""
        return energy_nj(self.total("macs"), self.total("acs"))

    @property
    def integer_energy_nj(self) -> float:
        """Nanojoules with integers read as that many spikes."""
        return energy_nj(self.total("integer_macs"), self.total("integer_acs"))


def profile(model: nn.Module, batches: Iterable[Any], *, images: int | None = None) -> Profile:
    """Runs a network over data once, in evaluation mode, and adds up what its neurons and layers do.

    Args:
        model: The network; its mode is put back afterwards.
        batches: Inputs of shape (N, ...), or (inputs, labels).
        images: Stop after so many.

    Raises:
        DataError: There was no image.
    """
    statistics, counter = FiringStatistics(model), OperationCounter(model)
    device = model_device(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for inputs in first_images(batches, images):
            with torch.no_grad(), without_memory(model), statistics.watching(), counting(model, counter):
                model(inputs.to(device))
            statistics.passed(len(inputs))
    finally:
        for module, mode in training.items():
            module.training = mode
    if statistics.images == 0:
        raise DataError("there is no image to measure spikes on: none could be read; check the data set's files")
    return Profile(
        images=statistics.images,
        timesteps=statistics.timesteps,
        firing_rate=statistics.firing_rate,
        activation_sparsity=statistics.activation_sparsity,
        neurons=statistics.neurons(),
        layers=counter.layers(statistics.images),
        uncounted=tuple(sorted(counter.uncounted)),
    )


def first_images(batches: Iterable[Any], images: int | None) -> Iterable[Tensor]:
    """Inputs of the first so many images."""
    left = images
    for batch in batches:
        inputs: Tensor = batch[0] if isinstance(batch, (list, tuple)) else batch
        if left is not None:
            inputs = inputs[:left]
            left -= len(inputs)
        if len(inputs):
            yield inputs
        if left == 0:
            return
