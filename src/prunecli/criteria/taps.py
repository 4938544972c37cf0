"""Seeing, and changing, what the weights that read a channel take in, whatever kind of layer they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.criteria.base import role_of
from prunecli.criteria.unrolling import Tap, unrolled
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.removal.compensate import channels_last, layer_input

_RECURRENT = ("weight_ih", "weight_hh", "weight_hr")


def tappable(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The weights that read `group` and show what they take in: of linear layers, convolutions, recurrent layers."""
    return [
        member
        for member in group.members
        if role_of(model, member) == "consumer" and _shows(model.get_submodule(member.module), member.tensor)
    ]


def _shows(module: nn.Module, tensor: str) -> bool:
    if isinstance(module, (nn.Linear, _ConvNd)):
        return tensor == "weight"
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and tensor.startswith(_RECURRENT)


def last(module: nn.Module, values: Tensor) -> Tensor:
    """What a weight takes in, or the gradient of it, with the channel dimension last."""
    return channels_last(module, values) if isinstance(module, _ConvNd) else values


@contextmanager
def tapped(model: nn.Module, members: Iterable[Member], tap: Tap) -> Iterator[None]:
    """Calls `tap` with what each member takes in while the network runs, and goes on with what it returns.

    Args:
        model: The network, in evaluation mode where it has recurrent layers.
        members: Some of the `tappable` ones.
        tap: Called with a member's name and values in the form that its layer takes: as many times as the layer runs,
            and for hidden units once a step.
    """
    by_module: dict[str, set[str]] = {}
    for member in members:
        by_module.setdefault(member.module, set()).add(member.tensor)
    with ExitStack() as undo:
        for name, tensors in by_module.items():
            module, own = model.get_submodule(name), partial(_chosen, tap, f"{name}." if name else "", tensors)
            if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
                undo.enter_context(_replaced_forward(module, unrolled(module, own)))
            else:
                undo.callback(module.register_forward_pre_hook(_layer_hook(own), with_kwargs=True).remove)
        yield


def _chosen(tap: Tap, prefix: str, tensors: set[str], tensor: str, values: Tensor) -> Tensor:
    return tap(prefix + tensor, values) if tensor in tensors else values


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


def _layer_hook(tap: Tap) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Any, Any]]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        taken_in = layer_input(args, kwargs)
        if taken_in is None:
            return args, kwargs
        instead = tap("weight", taken_in)
        named = {key: instead if value is taken_in else value for key, value in kwargs.items()}
        return tuple(instead if value is taken_in else value for value in args), named

    return hook
