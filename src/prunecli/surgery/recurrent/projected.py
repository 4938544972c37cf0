"""An LSTM with a projection that may be as wide as its cell state."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class ProjectedLSTM(nn.LSTM):
    """A single `nn.LSTM` layer with `proj_size`, which removal may make as large as `hidden_size`.

    torch takes a layer whose two states are equally wide for one without a projection. Such a layer is run with one
    hidden unit more, whose weights are zero: its cell state stays zero, and nothing reads it.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As `nn.LSTM`."""
        if self.proj_size != self.hidden_size:
            return nn.LSTM.forward(self, input, hx)
        wider = copy.copy(self)
        wider.__dict__["hidden_size"] = self.hidden_size + 1
        wider.__dict__["_flat_weights"] = [self._wider(name, getattr(self, name)) for name in self._flat_weights_names]
        output, (hidden, cells) = wider.forward(input, hx if hx is None else (hx[0], F.pad(hx[1], (0, 1))))
        return output, (hidden, cells[..., :-1])

    def _wider(self, name: str, weight: Tensor) -> Tensor:
        if name.startswith("weight_hr"):
            return F.pad(weight, (0, 1))
        gates = weight.reshape(4, self.hidden_size, *weight.shape[1:])
        return F.pad(gates, (0, 0, 0, 1) if weight.dim() == 2 else (0, 1)).flatten(0, 1)
