"""Weights of PyTorch's word language model example, whose names are those of `lm:...`: sizes are read from shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunecli.errors import ModelError
from prunecli.models.dialects.dialect import ForeignRequest, Translation

_GATES = {4: "lstm", 3: "gru", 1: "rnn"}
"""Kind of the layers by the number of their gates."""
_LAYER = re.compile(r"rnn\.weight_hh_l(\d+)")
_READ = ("encoder.weight", "decoder.weight", "decoder.bias", "rnn.weight_ih_l0", "rnn.weight_hh_l0")


class _Example:
    def translate(self, tensors: Mapping[str, Tensor], request: ForeignRequest) -> Translation | None:
        """Reads layers, units, embedding, vocabulary and ties; dropout does not matter until it is trained again."""
        if any(name not in tensors for name in _READ):
            return None
        if (request.arch or "lm:").partition(":")[0] != "lm":
            return None
        recurrent, encoder, decoder = tensors["rnn.weight_hh_l0"], tensors["encoder.weight"], tensors["decoder.weight"]
        rows, units = recurrent.shape if recurrent.dim() == 2 else (0, 1)
        kind = _GATES.get(rows // units) if units and rows % units == 0 else None
        if kind is None or encoder.dim() != 2:
            return None
        ref = request.arch or f"lm:{kind}"
        if ref != f"lm:{kind}":
            raise ModelError(f"{request.path}: its layers have the gates of lm:{kind}, not of {ref}; leave --arch out")
        kwargs: dict[str, Any] = {
            "num_classes": encoder.shape[0],
            "units": units,
            "layers": 1 + max(int(match[1]) for name in tensors if (match := _LAYER.fullmatch(name))),
            "embedding": encoder.shape[1],
            "tied": encoder.shape == decoder.shape and torch.equal(encoder, decoder),
        }
        sizes = f"{kwargs['layers']} layers of {units:,} units, a vocabulary of {encoder.shape[0]:,}"
        notes = (f"read as {ref}: {sizes}{', tied weights' if kwargs['tied'] else ''}",)
        return Translation(dict(tensors), ref, kwargs, notes)


EXAMPLE = _Example()
