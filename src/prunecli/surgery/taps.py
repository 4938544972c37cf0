"""Seeing, and changing, what the weights of layers take in, whatever kind of layer they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.recurrent.unrolling import Tap, is_unrollable, unrolled

_RECURRENT = ("weight_ih", "weight_hh", "weight_hr")


def is_flipped_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weight has inputs first, as GPT-2 of transformers has them (`Conv1D`)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def experts_begin_with_inputs(module: nn.Module) -> bool | None:
    """Whether the weights of a mixture of experts of transformers, one entry for each, have inputs before outputs.

    None for all other modules.
    """
    own = any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)
    known = vars(module).get("is_transposed") if own and hasattr(module, "num_experts") else None
    return known if isinstance(known, bool) else None


def is_layer(module: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution."""
    return isinstance(module, (nn.Linear, _ConvNd)) or is_flipped_linear(module)


def shows(module: nn.Module, tensor: str) -> bool:
    """Whether what a parameter of a module takes in can be seen: of linear layers, convolutions, recurrent layers."""
    if is_layer(module):
        return tensor == "weight"
    return is_unrollable(module) and tensor.startswith(_RECURRENT)


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a linear layer or convolution was called with: its first floating tensor, by position or by keyword."""
    values = (*args, *kwargs.values())
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def channels_last(module: nn.Module, values: Tensor) -> Tensor:
    """What a layer's weight takes in, or the gradient of it, with the channel dimension last.

    Args:
        module: A linear or recurrent layer, or a convolution; those of spikingjelly take all steps at once,
            (T, N, C, ...).
        values: A tensor shaped like the layer's input.
    """
    if not isinstance(module, _ConvNd):
        return values
    return values.movedim(2 if values.dim() > module.weight.dim() else 1, -1)


def attended_positions(inputs: Any) -> Tensor | None:
    """Which positions of texts are no padding, a Boolean tensor (samples, positions), where their batch says so.

    None where all count, and where a decoder's positions could be taken for those of the texts.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.all()):
        return None
    decoded = inputs.get("decoder_input_ids") if isinstance(inputs, Mapping) else None
    same = isinstance(decoded, Tensor) and decoded.shape == mask.shape
    return None if same else mask.bool()


def counted_rows(values: Tensor, attended: Tensor | None) -> Tensor:
    """What a layer takes in at every position that counts, shape (positions, channels).

    Args:
        values: The same with channels last; samples and their positions before them, or both in one dimension.
        attended: Which positions of which sample are no padding, shape (samples, positions); None: all count.
    """
    rows = values.reshape(-1, values.shape[-1])
    if attended is None:
        return rows
    flat = values.dim() == 2 and len(rows) == attended.numel()
    return rows[attended.flatten().to(rows.device)] if flat or values.shape[:-1] == attended.shape else rows


@contextmanager
def tapped(model: nn.Module, tensors: Iterable[str], tap: Tap) -> Iterator[None]:
    """Calls `tap` with what each weight takes in while the network runs, and goes on with what it returns.

    Args:
        model: The network, in evaluation mode where it has recurrent layers.
        tensors: Full names of parameters, such as "rnn.weight_hh_l0"; their modules have to show them.
        tap: Called with a parameter's full name and values in the form that its layer takes: as many times as the
            layer runs, and for hidden units once a step.
    """
    by_module: dict[str, set[str]] = {}
    for name in tensors:
        path, _, tensor = name.rpartition(".")
        by_module.setdefault(path, set()).add(tensor)
    with ExitStack() as undo:
        for path, own_tensors in by_module.items():
            module, own = model.get_submodule(path), partial(_chosen, tap, f"{path}." if path else "", own_tensors)
            if is_unrollable(module):
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
