"""Where to compute, and how to get the same result twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.engine.divided import is_sharded
from prunecli.errors import RecipeError
from prunecli.inputs import map_tensors

_IMAGE_DIMENSIONS = 4
_CONVERTED: WeakSet[nn.Module] = WeakSet()
"""Modules of networks that are in channels-last format for now."""


def pick_device(name: str) -> torch.device:
    """Turns "auto", "cpu", "cuda", "cuda:1" or "mps" into a device; "auto" takes the first accelerator.

    Raises:
        RecipeError: The name is unknown or the machine has no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each backend says no in its own way
        raise RecipeError(f"device {name!r} is not available on this machine; use auto or cpu") from error
    return device


def seed_everything(seed: int) -> None:
    """Seeds every generator that torch, NumPy and the image transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def channels_last(model: nn.Module) -> Iterator[torch.memory_format]:
    """Converts a 2-d convolutional network to channels-last memory format, which is faster, and back afterwards.

    Validation during training leaves the format to the training around it: sums in another order would differ in the
    last bits from those of a run that is resumed.
    """
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    layout = torch.channels_last if convolutional else torch.contiguous_format
    modules = list(model.modules())
    if any(module in _CONVERTED for module in modules) or is_sharded(model):  # parts of weights have no format
        yield layout
        return
    _CONVERTED.update(modules)
    model.to(memory_format=layout)
    try:
        yield layout
    finally:
        _CONVERTED.difference_update(modules)
        model.to(memory_format=torch.contiguous_format)


def move_batch(inputs: Any, device: torch.device, layout: torch.memory_format) -> Any:
    """Moves a batch's tensors to `device`; four-dimensional ones get the memory format `layout`."""

    def moved(tensor: Tensor) -> Tensor:
        memory_format = layout if tensor.dim() == _IMAGE_DIMENSIONS else torch.contiguous_format
        return tensor.to(device, non_blocking=True, memory_format=memory_format)

    return map_tensors(inputs, moved)
