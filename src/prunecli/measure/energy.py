"""Energy of a network's operations in 45 nm CMOS, and the pass over data that measures a spiking network.

Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014: a 32-bit floating-point multiplication
takes 3.7 pJ and an addition 0.9 pJ. Memory, control and element-wise operations are not included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunecli.errors import DataError
from prunecli.inputs import Inputs, run_batch, sample_count, split_batch, take_samples
from prunecli.measure.neurons import without_memory
from prunecli.measure.spikes import FiringStatistics, NeuronFigures
from prunecli.measure.synops import LayerOperations, OperationCounter, counting
from prunecli.modes import evaluating

_MAC_PJ = 4.6
_AC_PJ = 0.9
FORMULA = f"{_MAC_PJ} pJ x MACs + {_AC_PJ} pJ x ACs (45 nm)"


def energy_nj(macs: float, acs: float = 0.0) -> float:
    """Energy in nanojoules of `macs` multiply-accumulates and `acs` accumulates."""
    return (_MAC_PJ * macs + _AC_PJ * acs) / 1000


@dataclass(frozen=True)
class Profile:
    """Operations and spikes of a network per image, averaged over data.

    Attributes:
        images: Number of images that were run.
        timesteps: Time steps per image; 0 for a network without spiking neurons.
        firing_rate: Spikes per neuron and time step.
        activation_sparsity: Share of zeros in the outputs of neurons and activation functions.
        neurons: Firing statistics of each layer of neurons.
        layers: Operations of each layer.
        uncounted: Operators that may multiply and were not counted; if any, operations and energy are lower bounds.
    """

    images: int
    timesteps: int
    firing_rate: float
    activation_sparsity: float
    neurons: tuple[NeuronFigures, ...]
    layers: tuple[LayerOperations, ...]
    uncounted: tuple[str, ...] = ()

    def total(self, figure: str) -> float:
        """The sum over layers of a figure of `LayerOperations`."""
        return float(sum(getattr(layer, figure) for layer in self.layers))

    @property
    def synops(self) -> float:
        """Synaptic operations: accumulates driven by spikes; an integer counts as that many spikes."""
        return self.total("integer_acs")

    @property
    def energy_nj(self) -> float:
        """Energy in nanojoules if integers are multiplied."""
        return energy_nj(self.total("macs"), self.total("acs"))

    @property
    def integer_energy_nj(self) -> float:
        """Energy in nanojoules if an integer is read as that many spikes."""
        return energy_nj(self.total("integer_macs"), self.total("integer_acs"))


def profile(
    model: nn.Module, batches: Iterable[Any], *, images: int | None = None, like: Inputs | None = None
) -> Profile:
    """Runs a network over data once, in evaluation mode, and adds up the operations of its neurons and layers.

    Args:
        model: The network; its training mode is restored afterwards.
        batches: Inputs, or (inputs, labels); see `prunecli.inputs.split_batch`.
        images: Stop after this many; None: run all.
        like: Example inputs, where inputs are a tuple.

    Raises:
        DataError: There was no image.
    """
    statistics, counter = FiringStatistics(model), OperationCounter(model)
    with evaluating(model):
        for inputs in first_images(batches, images, like):
            with torch.no_grad(), without_memory(model), statistics.watching(), counting(model, counter):
                run_batch(model, inputs)
            statistics.end_pass(sample_count(inputs))
    if statistics.images == 0:
        raise DataError("there are no images to measure spikes on: none could be read; check the data files")
    return Profile(
        images=statistics.images,
        timesteps=statistics.timesteps,
        firing_rate=statistics.firing_rate,
        activation_sparsity=statistics.activation_sparsity,
        neurons=statistics.neurons(),
        layers=counter.layers(statistics.images),
        uncounted=tuple(sorted(counter.uncounted)),
    )


def first_images(batches: Iterable[Any], images: int | None, like: Inputs | None = None) -> Iterator[Any]:
    """Yields the inputs of batches up to a number of images; see `profile`."""
    left = images
    for batch in batches:
        inputs, _ = split_batch(batch, like)
        if left is not None:
            inputs = take_samples(inputs, 0, left)
            left -= sample_count(inputs)
        if sample_count(inputs):
            yield inputs
        if left == 0:
            return
