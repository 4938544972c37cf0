"""A recurrent cell that takes states of the width it has, and of the width it had before units were removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.surgery.recurrent.plain import is_plain_cell


class RecurrentCell(nn.Module):
    """An `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` whose first state may have the original width.

    Networks that loop over steps often begin with `torch.zeros(batch, 256)`, a width that is written in their code.
    Such a state is cut to the units that are left; states that the cell returns have its own width.

    Args:
        cell: The cell; it becomes the child `cell`.

    Attributes:
        hidden_size: Width of states before anything was removed.
        units: Buffer with the position in such a state of every unit that is left, shape (hidden units,).
    """

    units: Tensor

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.hidden_size, self.input_size = cell, cell.hidden_size, cell.input_size
        self.register_buffer("units", torch.arange(cell.hidden_size, device=cell.weight_hh.device))
        self.train(cell.training)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One step.

        Args:
            input: Shape (N, input size) or (input size,).
            hx: None for zeros, or the state, shape (N, hidden units), of an LSTM a pair of them.
        """
        if hx is None:
            return self.cell(input)
        return self.cell(input, tuple(map(self._own, hx)) if isinstance(hx, (tuple, list)) else self._own(hx))

    def _own(self, state: Tensor) -> Tensor:
        """The state of the units that are left.

        Before anything is removed this picks all of them: that is how a trace learns where a state comes in.
        """
        return state.index_select(-1, self.units) if state.shape[-1] == self.hidden_size else state


def wrap_cells(model: nn.Module, names: Any) -> None:
    """Wraps cells, in place; a cell under two names becomes one.

    Raises:
        ModelError: There is no cell of that name.
    """
    made: dict[int, RecurrentCell] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        cell = modules.get(name)
        if not name or not is_plain_cell(cell):
            raise ModelError(f"the manifest wraps {name!r}, which is no recurrent cell")
        assert isinstance(cell, nn.RNNCellBase)
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._modules[leaf] = made.setdefault(id(cell), RecurrentCell(cell))


def wrapped_cells(model: nn.Module) -> list[str]:
    """Names of the wrapped cells in a network."""
    return [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, RecurrentCell)]
