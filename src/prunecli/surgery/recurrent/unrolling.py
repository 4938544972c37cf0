"""Recurrent layers step by step: a fused `nn.LSTM` shows nobody the hidden units that its own weights read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from prunecli.surgery.recurrent.projected import ProjectedLSTM

Tap = Callable[[str, Tensor], Tensor]
"""From a weight's name and what it takes in to what it takes in instead."""


def is_unrollable(module: nn.Module) -> bool:
    """Whether a module computes what torch's recurrent layers and cells do: its class, or itself, may do otherwise."""
    return type(module) in _OWN and "forward" not in vars(module)


def unrolled(module: nn.Module, tap: Tap) -> Callable[..., Any]:
    """A stand-in for the forward pass of a recurrent layer in evaluation mode, or of a cell.

    It covers `nn.RNN`, `nn.GRU` and `nn.LSTM` with any number of layers, both directions and projections, on padded
    and packed sequences.

    Args:
        module: An unrollable one; its weights are read at every call.
        tap: Called with "weight_ih_l0" and the whole sequence, shape (steps, samples, features), or (rows, features)
            of packed sequences; and at every step with "weight_hh_l0" and the hidden units before it, shape (samples,
            units), of packed sequences those of samples that have not ended; with a projection, with "weight_hr_l0"
            and the units before that. For a cell: with "weight_ih" and "weight_hh".
    """
    if isinstance(module, nn.RNNCellBase):
        return _unrolled_cell(module, tap)
    assert isinstance(module, nn.RNNBase)
    return _unrolled_layer(module, tap)


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
    def forward(input: Any, hx: Any = None) -> Any:  # its name in torch
        if isinstance(input, PackedSequence):
            return _packed(module, input, hx, tap)
        alone = input.dim() == 2
        steps = input.unsqueeze(1) if alone else input.transpose(0, 1) if module.batch_first else input
        states = _initial(
            module, steps, steps.shape[1], tuple(part.unsqueeze(1) for part in _parts(hx)) if alone else _parts(hx)
        )
        steps, last = _all_layers(module, steps, None, states, tap)
        if alone:
            steps, last = steps.squeeze(1), tuple(part.squeeze(1) for part in last)
        elif module.batch_first:
            steps = steps.transpose(0, 1)
        return steps, last if isinstance(module, nn.LSTM) else last[0]

    return forward


def _packed(module: nn.RNNBase, sequence: PackedSequence, hx: Any, tap: Tap) -> tuple[PackedSequence, Any]:
    data, sizes, order, back = sequence
    states = tuple(part if order is None else part.index_select(1, order) for part in _parts(hx))
    states = _initial(module, data, int(sizes[0]), states)
    data, last = _all_layers(module, data, sizes.tolist(), states, tap)
    last = tuple(part if back is None else part.index_select(1, back) for part in last)
    return PackedSequence(data, sizes, order, back), last if isinstance(module, nn.LSTM) else last[0]


def _all_layers(
    module: nn.RNNBase, steps: Tensor, sizes: list[int] | None, states: tuple[Tensor, ...], tap: Tap
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs of the last layer, and last states of all, shape (layers * directions, samples, units)."""
    directions = 2 if module.bidirectional else 1
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{layer}{'_reverse' if direction else ''}"
            state = tuple(part[layer * directions + direction] for part in states)
            output, final = _direction(module, suffix, steps, sizes, state, tap, backwards=direction == 1)
            outputs.append(output)
            finals.append(final)
        steps = torch.cat(outputs, dim=-1)
    return steps, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


def _parts(hx: Any) -> tuple[Tensor, ...]:
    """The tensors of a state; none of None."""
    return () if hx is None else tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)


def _initial(module: nn.RNNBase, like: Tensor, samples: int, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The states before the first step, each of shape (layers * directions, samples, units)."""
    if states:
        return states
    count = module.num_layers * (2 if module.bidirectional else 1)
    widths = [module.proj_size or module.hidden_size]
    if isinstance(module, nn.LSTM):
        widths.append(module.hidden_size)
    return tuple(like.new_zeros(count, samples, width) for width in widths)


def _direction(
    module: nn.RNNBase,
    suffix: str,
    sequence: Tensor,
    sizes: list[int] | None,
    state: tuple[Tensor, ...],
    tap: Tap,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction of one layer: its outputs, shaped like the sequence, and its last state.

    Of packed sequences, `sizes` says how many samples have not ended at each step: these come first.
    """

    def own(name: str) -> Tensor | None:
        return getattr(module, name + suffix, None)

    weight, bias = own("weight_ih"), own("bias_ih")
    recurrent, projection = own("weight_hh"), own("weight_hr")
    assert weight is not None and recurrent is not None
    from_input = F.linear(tap(f"weight_ih{suffix}", sequence), weight, bias)
    step = _STEPS[module.mode]
    outputs: list[Tensor] = []
    pieces = from_input.unbind() if sizes is None else torch.split(from_input, sizes)
    for given in reversed(pieces) if backwards else pieces:
        running = tuple(part[: len(given)] for part in state)
        from_hidden = F.linear(tap(f"weight_hh{suffix}", running[0]), recurrent, own("bias_hh"))
        after = step(given, from_hidden, running)
        if projection is not None:
            after = (F.linear(tap(f"weight_hr{suffix}", after[0]), projection), *after[1:])
        outputs.append(after[0])
        state = tuple(
            new if len(new) == len(old) else torch.cat((new, old[len(new) :]))
            for new, old in zip(after, state, strict=True)
        )
    outputs = outputs[::-1] if backwards else outputs
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), state


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
_OWN = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell, ProjectedLSTM)
