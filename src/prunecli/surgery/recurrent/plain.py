"""Which modules are torch's own recurrent layers and cells, with nothing added to them."""

from __future__ import annotations

from typing import Any

from torch import nn

_OF_MODULE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_LAYER = frozenset(
    "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size nonlinearity "
    "_flat_weights _flat_weights_names _flat_weight_refs _all_weights".split()
)


def is_plain_layer(module: Any) -> bool:
    """Whether a module is an `nn.LSTM`, `nn.GRU` or `nn.RNN` without hooks and attributes of somebody's own."""
    return type(module) in (nn.LSTM, nn.GRU, nn.RNN) and _is_untouched(module)


def is_plain_cell(module: Any) -> bool:
    """Whether a module is an `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` without hooks and attributes added to it."""
    return type(module) in (nn.LSTMCell, nn.GRUCell, nn.RNNCell) and _is_untouched(module)


def _is_untouched(module: nn.Module) -> bool:
    """No hooks, no parametrisation, no `forward` of the instance's own, nothing that other code put there to read."""
    return set(vars(module)) <= _OF_MODULE | _OF_LAYER and not any(getattr(module, hooks) for hooks in _HOOKS)
