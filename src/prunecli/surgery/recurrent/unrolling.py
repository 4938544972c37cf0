"""Recurrent layers step by step: a fused `nn.LSTM` shows nobody the hidden units that its own weights read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Tap = Callable[[str, Tensor], Tensor]
"""From a weight's name and what it takes in to what it takes in instead."""


def unrolled(module: nn.RNNBase | nn.RNNCellBase, tap: Tap) -> Callable[..., Any]:
    """A stand-in for the forward pass of a recurrent layer in evaluation mode, or of a cell.

    It covers `nn.RNN`, `nn.GRU` and `nn.LSTM` with any number of layers, both directions and projections. A packed
    sequence runs through the layer itself, and nothing of it is tapped.

    Args:
        module: The layer; its weights are read at every call.
        tap: Called with "weight_ih_l0" and the whole sequence, shape (steps, samples, features), and at every step
            with "weight_hh_l0" and the hidden units before it, shape (samples, units); with a projection, with
            "weight_hr_l0" and the units before that. For a cell: with "weight_ih" and "weight_hh".
    """
    return _unrolled_cell(module, tap) if isinstance(module, nn.RNNCellBase) else _unrolled_layer(module, tap)


def _unrolled_cell(module: nn.RNNCellBase, tap: Tap) -> Callable[..., Any]:
    is_lstm = isinstance(module, nn.LSTMCell)
    mode = "LSTM" if is_lstm else "GRU" if isinstance(module, nn.GRUCell) else f"RNN_{module.nonlinearity}".upper()

    def forward(input: Any, hx: Any = None) -> Any:  # its name in torch
        zeros = input.new_zeros(*input.shape[:-1], module.hidden_size)
        state = (zeros, zeros) if hx is None and is_lstm else (zeros,) if hx is None else hx if is_lstm else (hx,)
        given = F.linear(tap("weight_ih", input), module.weight_ih, module.bias_ih)
        from_hidden = F.linear(tap("weight_hh", state[0]), module.weight_hh, module.bias_hh)
        state = _STEPS[mode](given, from_hidden, tuple(state))
        return state if is_lstm else state[0]

    return forward


def _unrolled_layer(module: nn.RNNBase, tap: Tap) -> Callable[..., Any]:
    fused = type(module).forward

    def forward(input: Any, hx: Any = None) -> Any:  # its name in torch
        if isinstance(input, PackedSequence):
            return fused(module, input, hx)
        alone = input.dim() == 2
        steps = input.unsqueeze(1) if alone else input.transpose(0, 1) if module.batch_first else input
        states = _initial(module, steps, hx, alone)
        directions = 2 if module.bidirectional else 1
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(module.num_layers):
            outputs = []
            for direction in range(directions):
                suffix = f"_l{layer}{'_reverse' if direction else ''}"
                state = tuple(part[layer * directions + direction] for part in states)
                output, final = _direction(module, suffix, steps, state, tap, backwards=direction == 1)
                outputs.append(output)
                finals.append(final)
            steps = torch.cat(outputs, dim=-1)
        last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if alone:
            steps, last = steps.squeeze(1), tuple(part.squeeze(1) for part in last)
        elif module.batch_first:
            steps = steps.transpose(0, 1)
        return steps, last if isinstance(module, nn.LSTM) else last[0]

    return forward


def _initial(module: nn.RNNBase, steps: Tensor, hx: Any, alone: bool) -> tuple[Tensor, ...]:
    """The states before the first step, each of shape (layers * directions, samples, units)."""
    if hx is not None:
        states = hx if isinstance(module, nn.LSTM) else (hx,)
        return tuple(part.unsqueeze(1) for part in states) if alone else tuple(states)
    count = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size]
    if isinstance(module, nn.LSTM):
        widths.append(module.hidden_size)
    return tuple(steps.new_zeros(count, steps.shape[1], width) for width in widths)


def _direction(
    module: nn.RNNBase, suffix: str, sequence: Tensor, state: tuple[Tensor, ...], tap: Tap, *, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of one layer: its outputs, shape (steps, samples, units), and its last state."""

    def own(name: str) -> Tensor | None:
        return getattr(module, name + suffix, None)

    weight, bias = own("weight_ih"), own("bias_ih")
    assert weight is not None
    from_input = F.linear(tap(f"weight_ih{suffix}", sequence), weight, bias)
    step = _STEPS[module.mode]
    outputs: list[Tensor] = []
    recurrent = own("weight_hh")
    assert recurrent is not None
    for given in reversed(from_input.unbind()) if backwards else from_input.unbind():
        from_hidden = F.linear(tap(f"weight_hh{suffix}", state[0]), recurrent, own("bias_hh"))
        state = step(given, from_hidden, state)
        projection = own("weight_hr")
        if projection is not None:
            state = (F.linear(tap(f"weight_hr{suffix}", state[0]), projection), *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _lstm(given: Tensor, from_hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    enter, forget, new, leave = (given + from_hidden).chunk(4, dim=-1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(given: Tensor, from_hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (reset, update, new), (reset_h, update_h, new_h) = given.chunk(3, dim=-1), from_hidden.chunk(3, dim=-1)
    keep = (update + update_h).sigmoid()
    fresh = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    return ((1 - keep) * fresh + keep * state[0],)


_STEPS: dict[str, Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda given, from_hidden, state: ((given + from_hidden).tanh(),),
    "RNN_RELU": lambda given, from_hidden, state: ((given + from_hidden).relu(),),
}
