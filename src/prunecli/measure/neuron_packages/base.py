"""What the rest of the code has to know about the neurons of a package."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn


class NeuronPackage(Protocol):
    """A package whose neurons are watched. Arguments called `module` are neurons of the package, unless said."""

    def is_neuron(self, module: nn.Module) -> bool:
        """Whether any module integrates and fires, and its spikes can be watched."""
        ...

    def is_unwatched(self, module: nn.Module) -> bool:
        """Whether any module is a neuron of the package of a kind whose spikes cannot be watched."""
        ...

    def spikes(self, module: nn.Module, output: Any) -> Tensor:
        """The numbers of spikes in what the module returned: (T, N, C, ...) if `takes_all_steps`, else (N, C, ...)."""
        ...

    def takes_all_steps(self, module: nn.Module) -> bool:
        """Whether one call is all time steps, along the first dimension."""
        ...

    def reset(self, module: nn.Module) -> None:
        """Sets any module of the package with a state to its state before a sample; does nothing to others."""
        ...

    def own_instances(self, model: nn.Module) -> AbstractContextManager[None]:
        """While inside, what the package's own functions reset are the neurons of this network alone."""
        ...

    def adopt(self, model: nn.Module) -> None:
        """Makes the package's own functions reach the neurons of a network that was copied, not constructed."""
        ...

    def keeping_potentials(self, module: nn.Module) -> AbstractContextManager[None] | None:
        """While inside, `potentials` can be read after a call; None if they cannot be."""
        ...

    def potentials(self, module: nn.Module, output: Any) -> Tensor:
        """Membrane potentials after the reset, in the shape of the spikes."""
        ...

    def charged(self, module: nn.Module, args: tuple[Any, ...]) -> Generator[Tensor]:
        """Potentials of each step if no neuron fires, from rest, for the arguments of a call; leaves no state."""
        ...

    def rest(self, module: nn.Module) -> float:
        """The potential before any input."""
        ...

    def threshold(self, module: nn.Module) -> float:
        """The threshold; the first, where neurons have several."""
        ...

    def set_threshold(self, module: nn.Module, value: float) -> None:
        """Sets one threshold for all neurons, in the form that the module keeps it in."""
        ...
