"""Training and evaluation mode of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def same_modes(*networks: nn.Module) -> Iterator[None]:
    """Afterwards every module of the networks is in the mode that it was in before."""
    training = {module: module.training for network in networks for module in network.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode."""
    with same_modes(*networks):
        for network in networks:
            network.eval()
        yield
