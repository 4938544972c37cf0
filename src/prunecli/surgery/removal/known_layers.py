"""Layers that repeat in attributes what their own tensors say: known because of the layer's class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Widths = dict[str, Any]
"""Attributes of a layer and the values that agree with its tensors."""
_GATES = {"LSTM": 4, "GRU": 3}
"""Blocks of rows in the weights of a recurrent layer; all others have one."""


def own_widths(module: nn.Module) -> Widths:
    """The width attributes of a known layer, as its tensors have them; empty for any other module.

    Args:
        module: A module of any class; one derived from a known layer counts as that layer.
    """
    for kind in type(module).__mro__:
        widths = _BY_CLASS.get(kind) or _BY_NAME.get((kind.__module__.partition(".")[0], kind.__name__))
        if widths is not None:
            found = widths(module).items()
            return {name: value for name, value in found if hasattr(module, name)}
    return _normalised_shape(module)


def blocks_of_rows(module: nn.Module, tensor: str) -> int:
    """How many rows of a tensor one channel has: one for each gate of a recurrent layer or cell, else one."""
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or tensor.startswith("weight_hr"):
        return 1
    return next((gates for kind, gates in _GATES.items() if kind in type(module).__name__), 1)


def _convolution(module: Any) -> Widths:
    rows, columns = module.weight.shape[:2]
    if getattr(module, "transposed", False):
        return {"in_channels": rows, "out_channels": columns * module.groups}
    return {"in_channels": columns * module.groups, "out_channels": rows}


def _linear(module: Any) -> Widths:
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _bilinear(module: Any) -> Widths:
    rows, first, second = module.weight.shape
    return {"out_features": rows, "in1_features": first, "in2_features": second}


def _transposed_linear(module: Any) -> Widths:
    return {"nx": module.weight.shape[0], "nf": module.weight.shape[1]}


def _embedding(module: Any) -> Widths:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _per_channel(attribute: str) -> Callable[[Any], Widths]:
    def widths(module: Any) -> Widths:
        tensors = (module.weight, getattr(module, "running_mean", None))
        known = next((tensor for tensor in tensors if tensor is not None), None)
        return {} if known is None else {attribute: known.shape[0]}

    return widths


def _normalised_shape(module: Any) -> Widths:
    """Layer normalisation and its kin, whatever their class; the shape stays a tuple, a list or a number."""
    shape, weight = getattr(module, "normalized_shape", None), getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return {}
    if isinstance(shape, (tuple, list)) and len(shape) == weight.dim():
        return {"normalized_shape": type(shape)(weight.shape)}
    if isinstance(shape, int) and not isinstance(shape, bool) and weight.dim() == 1:
        return {"normalized_shape": weight.shape[0]}
    return {}


def _attention(module: Any) -> Widths:
    """As many columns as come in; the code needs as many rows of queries, which all heads share."""
    packed = module.in_proj_weight
    width = (packed if packed is not None else module.q_proj_weight).shape[1]
    keys, values = (
        (width, width) if packed is not None else (module.k_proj_weight.shape[1], module.v_proj_weight.shape[1])
    )
    return {"embed_dim": width, "head_dim": width // module.num_heads, "kdim": keys, "vdim": values}


def _recurrent(module: Any) -> Widths:
    hidden = module.weight_hh_l0.shape[0] // _GATES.get(module.mode, 1)
    projected = module.weight_hr_l0.shape[0] if module.proj_size else 0
    return {"input_size": module.weight_ih_l0.shape[1], "hidden_size": hidden, "proj_size": projected}


def _recurrent_cell(module: Any) -> Widths:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


_BY_CLASS: Mapping[type, Callable[[Any], Widths]] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding,
    _NormBase: _per_channel("num_features"),
    nn.GroupNorm: _per_channel("num_channels"),
    nn.PReLU: _per_channel("num_parameters"),
    nn.MultiheadAttention: _attention,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
}
_BY_NAME: Mapping[tuple[str, str], Callable[[Any], Widths]] = {
    ("torchvision", "DeformConv2d"): _convolution,
    ("transformers", "Conv1D"): _transposed_linear,
}
"""Layers of packages that may not be installed, by package and name of their class."""
