"""What a collection is: networks by name, each with a way to build it and inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prunecli.inputs import Inputs


@dataclass(frozen=True)
class Network:
    """A network with random weights, and inputs. Everything is made when asked for, from torch's global seed.

    Attributes:
        name: "collection:name".
        build: Makes a new network; the same seed gives the same weights.
        inputs: Makes the example inputs, of one sample.
        other: Makes inputs of another batch size and, where the network takes it, of another length or size.
        training: Makes inputs for training mode, with targets where the network wants them; None: those of `other`.
        varying: Whether the number of rows in its outputs depends on their values, as for detections.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    other: Callable[[], Inputs]
    training: Callable[[], Inputs] | None = None
    varying: bool = False


@runtime_checkable
class Collection(Protocol):
    """Brings the networks of "COLLECTION:NAME": a module, or an object, with these members.

    Attributes:
        PACKAGE: What to install for it, as pip knows it.
    """

    PACKAGE: str

    def names(self) -> Sequence[str]:
        """All names; without importing the package where they are listed by hand."""
        ...

    def network(self, name: str, /) -> Network:
        """One of `names()`.

        Raises:
            ImportError: The package is not installed, or lacks what the network needs.
        """
        ...


def images(batch: int, channels: int, *size: int) -> Tensor:
    """Normal noise of shape (batch, channels, *size)."""
    return torch.randn(batch, channels, *size)
