"""How large a network is, found out without memory for it: by building and running it on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError, first_line

_SIDE = 256
"""Images that the package itself runs a network on to find its strides."""
_MOST_WEIGHTS, _MOST_ACTIVATIONS = 1 << 30, 1 << 27
"""The largest published YOLO network has 2^27 weights, and 2^23 numbers in one result for such an image."""


def check_size(package: Any, config: Mapping[str, Any], where: str) -> None:
    """Builds a network without memory and runs it, so that none that needs too much is ever built.

    Args:
        package: The package's module of networks.
        config: A checked configuration.
        where: Its name, for messages.

    Raises:
        ModelError: Its layers do not fit together, or it is too large.
    """
    given = copy.deepcopy(dict(config))
    try:
        with torch.device("meta"), torch.no_grad():
            layers, save = package.parse_model(given, given["channels"], verbose=False)
            weights = sum(parameter.numel() for parameter in layers.parameters())
            if weights > _MOST_WEIGHTS:
                raise ModelError(f"{where}: would have {weights:,} weights, more than any YOLO network; it was altered")
            _run(layers, save, torch.zeros(1, given["channels"], _SIDE, _SIDE), where)
    except ModelError:
        raise
    except Exception as error:
        first = " ".join(first_line(error).split())[:200]
        raise ModelError(f"{where}: its layers do not fit together: {first}") from error


def _run(layers: nn.Module, save: list[int], image: Tensor, where: str) -> None:
    """Runs all layers as the package does, checking the size of each result."""

    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.numel() > _MOST_ACTIVATIONS:
            raise ModelError(f"{where}: makes {output.numel():,} numbers of an image of {_SIDE}x{_SIDE} pixels")

    hooks = [module.register_forward_hook(check) for module in layers.modules()]
    layers.train()
    for module in layers.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # one sample of one position cannot be normalised in training
    results: list[Any] = []
    current: Any = image
    try:
        for layer in layers.children():
            source: Any = layer.f
            if isinstance(source, int):
                current = layer(current if source == -1 else results[source])
            else:
                current = layer([current if one == -1 else results[one] for one in source])
            results.append(current if layer.i in save else None)
    finally:
        for hook in hooks:
            hook.remove()
