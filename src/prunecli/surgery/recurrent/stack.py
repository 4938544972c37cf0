"""A recurrent layer as a list of single layers, so that every layer and direction can have its own width.

`nn.LSTM`, `nn.GRU` and `nn.RNN` hold the states of all layers in one tensor, and so give all of them one width. Here
every layer of every direction is a module of its own. States that go in or come out keep the shape they had: hidden
unit i is at position i, and units that were removed are zero. Whoever carries a state from one call to the next, or
reads it, sees what the original with zeros for the removed units would return.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from prunecli.errors import ModelError
from prunecli.surgery.recurrent.plain import is_plain_layer
from prunecli.surgery.recurrent.projected import ProjectedLSTM

_KINDS: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}
_Sequence: TypeAlias = "Tensor | PackedSequence"


class RecurrentStack(nn.Module):
    """Computes what an `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, and is called like it.

    Its layers are children named `l0`, `l0_reverse`, `l1` and so on, after torch's names of their parameters. The
    buffer `l0_units` holds the position in the state of every hidden unit that layer has, shape (hidden units,);
    with projections `l0_units` are those of the projected state, and `l0_cells` those of the cell state.

    Args:
        layer: The layer whose parameters are taken over; one tensor each, not copied.
    """

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.num_layers, self.bidirectional = layer.mode, layer.num_layers, layer.bidirectional
        self.input_size, self.hidden_size, self.proj_size = layer.input_size, layer.hidden_size, layer.proj_size
        self.bias, self.batch_first, self.dropout = layer.bias, layer.batch_first, float(layer.dropout)
        for suffix in (name for depth in range(layer.num_layers) for name in _directions(layer.bidirectional, depth)):
            self.add_module(suffix, _single(layer, suffix))
            width = layer.proj_size or layer.hidden_size
            device = next(layer.parameters()).device
            self.register_buffer(f"{suffix}_units", torch.arange(width, device=device))
            if layer.proj_size:
                self.register_buffer(f"{suffix}_cells", torch.arange(layer.hidden_size, device=device))
        self.train(layer.training)

    def extra_repr(self) -> str:
        """The settings that all layers share."""
        return f"{self.mode}, hidden_size={self.hidden_size}, batch_first={self.batch_first}, dropout={self.dropout}"

    def flatten_parameters(self) -> None:
        """Puts the weights of every layer into one piece of memory, on a GPU."""
        for layer in self.children():
            layer.flatten_parameters()  # type: ignore[operator]

    def forward(self, input: _Sequence, hx: Any = None) -> tuple[_Sequence, Any]:
        """Runs all layers.

        Args:
            input: As of the original layer: shape (T, N, input size), (N, T, input size) with `batch_first`,
                (T, input size), or a packed sequence.
            hx: None for zeros, or the state, shape (layers * directions, N, hidden size); of an LSTM a pair of them.

        Returns:
            The outputs of the last layer, and the state, shaped as `hx`.
        """
        hidden: list[Tensor] = []
        cells: list[Tensor] = []
        x = input
        for depth in range(self.num_layers):
            outputs: list[Tensor] = []
            for suffix in _directions(self.bidirectional, depth):
                backward = suffix.endswith("_reverse")
                begun = self._entering(suffix, len(hidden), hx)
                output, last = self.get_submodule(suffix)(_reversed(x, self.batch_first) if backward else x, begun)
                outputs.append(_data(_reversed(output, self.batch_first) if backward else output))
                state = last[0] if self.mode == "LSTM" else last
                hidden.append(self._leaving(state, suffix, self.proj_size or self.hidden_size))
                if self.mode == "LSTM":
                    cells.append(self._leaving(last[1], suffix, self.hidden_size, cells=True))
            data = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
            if self.dropout and depth < self.num_layers - 1:
                data = F.dropout(data, self.dropout, self.training)
            x = _with_data(x, data)
        return x, (torch.cat(hidden), torch.cat(cells)) if self.mode == "LSTM" else torch.cat(hidden)

    def _positions(self, suffix: str, *, cells: bool = False) -> Tensor:
        kind = "cells" if cells and self.proj_size else "units"
        return self.get_buffer(f"{suffix}_{kind}")

    def _entering(self, suffix: str, index: int, hx: Any) -> Any:
        """The part of a state that one layer begins with.

        Raises:
            RuntimeError: The state has another shape than that of the original layer.
        """
        if hx is None:
            return None
        widths = (self.proj_size or self.hidden_size, self.hidden_size)
        for part, width in zip(hx if self.mode == "LSTM" else (hx,), widths, strict=False):
            wanted = (self.num_layers * (2 if self.bidirectional else 1), width)
            if (part.shape[0], part.shape[-1]) != wanted:
                raise RuntimeError(
                    f"expected a state of {wanted[0]} layers and {wanted[1]} units, got {list(part.shape)}"
                )
        if self.mode != "LSTM":
            return hx[index : index + 1].index_select(-1, self._positions(suffix))
        hidden, cell = hx
        return (
            hidden[index : index + 1].index_select(-1, self._positions(suffix)),
            cell[index : index + 1].index_select(-1, self._positions(suffix, cells=True)),
        )

    def _leaving(self, state: Tensor, suffix: str, width: int, *, cells: bool = False) -> Tensor:
        """A layer's last state at the positions it had in the original, zero elsewhere.

        It is added, not written: a position that stands for a removed unit of the reference adds zero.
        """
        whole = torch.zeros((*state.shape[:-1], width), dtype=state.dtype, device=state.device)
        return whole.index_add(state.dim() - 1, self._positions(suffix, cells=cells), state)


def separate(model: nn.Module, names: Any) -> None:
    """Replaces recurrent layers by stacks of single layers, in place; a layer under two names becomes one stack.

    Raises:
        ModelError: There is no recurrent layer of that name.
    """
    made: dict[int, RecurrentStack] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        layer = modules.get(name)
        if not name or not is_plain_layer(layer):
            raise ModelError(f"the manifest separates the layers of {name!r}, which is no recurrent layer")
        assert isinstance(layer, nn.RNNBase)
        parent, _, leaf = name.rpartition(".")
        if id(layer) not in made:
            made[id(layer)] = RecurrentStack(layer)
            _empty(layer)
        model.get_submodule(parent)._modules[leaf] = made[id(layer)]


def _empty(layer: nn.RNNBase) -> None:
    """Takes the parameters out of a layer that was replaced.

    Code that reaches it in another way, such as a list of its own, would run it with weights that nobody prunes or
    loads. Now it fails at once.
    """
    layer._parameters.clear()
    layer._flat_weights = [None] * len(layer._flat_weights_names)


def separated_names(model: nn.Module) -> list[str]:
    """Names of the stacks in a network."""
    return [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, RecurrentStack)]


def _directions(bidirectional: bool, depth: int) -> list[str]:
    """Names of the layers at one depth."""
    return [f"l{depth}", f"l{depth}_reverse"] if bidirectional else [f"l{depth}"]


def _single(layer: nn.RNNBase, suffix: str) -> nn.RNNBase:
    """One layer in one direction, with the parameters of the original."""
    first = f"weight_ih_{suffix}"
    settings: dict[str, Any] = {"bias": layer.bias, "batch_first": layer.batch_first, "device": "meta"}
    if layer.mode == "LSTM":
        settings["proj_size"] = layer.proj_size
    elif layer.mode.startswith("RNN"):
        settings["nonlinearity"] = layer.mode.removeprefix("RNN_").lower()
    kind = ProjectedLSTM if layer.proj_size else _KINDS[layer.mode]
    single = kind(getattr(layer, first).shape[1], layer.hidden_size, **settings)
    for name in list(single._parameters):
        single._parameters[name] = getattr(layer, f"{name.removesuffix('_l0')}_{suffix}")
    single._flat_weights = [getattr(single, name) for name in single._flat_weights_names]
    single._init_flat_weights()
    return single


def _data(sequence: _Sequence) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


def _with_data(like: _Sequence, data: Tensor) -> _Sequence:
    """A sequence packed as `like`, or the data themselves."""
    if not isinstance(like, PackedSequence):
        return data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def _reversed(sequence: _Sequence, batch_first: bool) -> _Sequence:
    """The steps in reverse order, of packed sequences each for itself."""
    if not isinstance(sequence, PackedSequence):
        return sequence.flip(1 if batch_first and sequence.dim() == 3 else 0)
    return _with_data(sequence, sequence.data.index_select(0, _reverse_order(sequence.batch_sizes, sequence.data)))


def _reverse_order(batch_sizes: Tensor, data: Tensor) -> Tensor:
    """For each row of packed data the row with which it changes places."""
    sizes = batch_sizes.to(data.device)
    starts = sizes.cumsum(0) - sizes
    step = torch.repeat_interleave(torch.arange(len(sizes), device=data.device), sizes, output_size=len(data))
    sample = torch.arange(len(data), device=data.device) - starts[step]
    lengths = (sizes[None, :] > torch.arange(int(batch_sizes[0]), device=data.device)[:, None]).sum(dim=1)
    return starts[lengths[sample] - 1 - step] + sample
