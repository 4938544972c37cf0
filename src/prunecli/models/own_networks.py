"""`module:package.file:function`: networks that a function of the user's builds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError
from prunecli.models.source import Opened, OpenRequest, Takes
from prunecli.own_code import called, load_function, parameters_of

_OPTION = "--arch"


def arguments_of(name: str) -> str:
    """What arguments a function of the user's takes, for the end of a message about weights that do not fit.

    Args:
        name: "package.file:function", which has run already.
    """
    taken = [key for key in parameters_of(load_function(name, ModelError, _OPTION)) if key not in ("args", "kwargs")]
    if not taken:
        return ""
    return f"; if it was built with other arguments ({', '.join(taken)}), give them: --model-kwargs {taken[0]}=VALUE"


def names() -> Sequence[str]:
    """None is known before it is named."""
    return ()


def build(name: str, pretrained: bool, *, config: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """The network that a function returns.

    Args:
        name: "package.file:function".
        pretrained: Not used.
        config: Arguments of the function, as a manifest records them.
        **kwargs: More of them.

    Raises:
        ModelError: There is no such function, it may not run, fails, or returns no network.
    """
    function = load_function(name, ModelError, _OPTION)
    with torch.device("cpu"):  # values that it computes while it is built would be lost on the meta device
        model = called(function, name, ModelError, **{**(config or {}), **kwargs})
    if not isinstance(model, nn.Module):
        raise ModelError(f"module:{name}: returns a {type(model).__name__}, not a torch.nn.Module")
    return model


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation | None]:
    """Nothing is known of its inputs."""
    return None, None


def open(name: str, request: OpenRequest) -> Opened:
    """Builds the network of a function; the number of classes of the data set is given to those that take it.

    Args:
        name: "package.file:function".
        request: Arguments of the function.

    Raises:
        ModelError: See `build`, or an argument cannot be recorded.
    """
    function = load_function(name, ModelError, _OPTION)
    config = dict(request.kwargs)
    count = request.num_classes  # a function that does not take what was asked for fails, and says so
    if count is None and "num_classes" in parameters_of(function):
        count = request.data_classes()
    config |= {"num_classes": count} if count is not None else {}
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"module:{name}: its arguments have to be plain values (--model-kwargs KEY=VALUE)") from error
    return Opened(name, config, build(name, request.pretrained, config=config))


def takes(name: str) -> Takes:
    """Nobody knows before an example is given."""
    return "other"


def example_inputs(model: nn.Module, seed: int) -> Any:
    """Only the user knows them.

    Raises:
        ModelError: Always.
    """
    raise ModelError("what your network takes is not known: give --example-shape 1x3x64x64 or --example FILE.npz")
