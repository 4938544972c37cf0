"""Queries and keys of a block, computed as its own attention does, for some tokens or all."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.errors import MethodError

_Part = Literal["q", "k"]
_NORMS = {"q": ("q_norm", "ln_q"), "k": ("k_norm", "ln_k")}


def projected(attention: nn.Module, x: Tensor, part: _Part, rope: Tensor | None = None) -> Tensor:
    """Queries or keys, normalised and with rotary embeddings as in the attention.

    Args:
        attention: timm's Attention, AttentionRope, EvaAttention or BEiT's, open_clip's Attention, one of transformers
            with `q_proj`, or nn.MultiheadAttention.
        x: Input of the attention, shape (N, L, C); without prefix tokens if `rope` is given.
        part: Queries or keys.
        rope: Rotary embedding of these tokens, shape (L, D) or (N, 1, L, D).

    Returns:
        Shape (N, heads, L, head_dim).
    """
    weight, bias = _weights_of(attention, part)
    heads: Any = getattr(attention, "num_heads", None) or getattr(attention, "num_attention_heads", None)
    own_heads = heads if part == "q" else getattr(attention, "num_kv_heads", heads)
    split = F.linear(x, weight, bias).reshape(*x.shape[:2], own_heads, -1).transpose(1, 2)
    for name in _NORMS[part]:
        norm = getattr(attention, name, None)
        if isinstance(norm, nn.Module):
            split = norm(split)
    if rope is not None:
        from timm.layers import apply_rot_embed_cat

        split = apply_rot_embed_cat(split, rope, half=getattr(attention, "rotate_half", False))
    result: Tensor = split if own_heads == heads else split.repeat_interleave(heads // own_heads, dim=1)
    return result


def _weights_of(attention: nn.Module, part: _Part) -> tuple[Tensor, Tensor | None]:
    """The rows of the projection that produce queries or keys, and their bias.

    Raises:
        MethodError: The class of the attention is unknown.
    """
    separate: Any = getattr(attention, f"{part}_proj", None)
    if separate is not None:
        return separate.weight, separate.bias
    fused: Any = getattr(attention, "qkv", None)
    chunk = 0 if part == "q" else 1
    if fused is not None:
        own: Any = getattr(attention, f"{part}_bias", None)
        bias = own if fused.bias is None else fused.bias.chunk(3)[chunk]
        return fused.weight.chunk(3)[chunk], bias
    packed: Any = getattr(attention, "in_proj_weight", None)
    if packed is None:
        raise MethodError(
            f"{type(attention).__name__} is an attention of an unknown kind: its queries and keys cannot be computed"
        )
    packed_bias: Any = attention.in_proj_bias
    return packed.chunk(3)[chunk], None if packed_bias is None else packed_bias.chunk(3)[chunk]


def attention_by_head(queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim) + bias): (N, heads, queries, keys)."""
    scores = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
    weights: Tensor = (scores if bias is None else scores + bias).softmax(dim=-1)
    return weights


def attention_weights(queries: Tensor, keys: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attention_by_head`, averaged over heads: (N, queries, keys)."""
    return attention_by_head(queries, keys, bias).mean(dim=1)


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens at `indices`, shape (N, K), of x, shape (N, L, C): (N, K, C)."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def gather_rope(rope: Tensor, indices: Tensor) -> Tensor:
    """Rotary embeddings (L, D), or (N, 1, L, D), of the patches at `indices` (N, K): (N, 1, K, D)."""
    if rope.dim() == 2:
        return rope[indices].unsqueeze(1)
    return rope.gather(2, indices[:, None, :, None].expand(-1, -1, -1, rope.shape[-1]))


def gather_bias(bias: Tensor, indices: Tensor) -> Tensor:
    """Biases (1 or N, heads, L, L) of all pairs of the tokens at `indices` (N, K): (N, heads, K, K)."""
    samples, kept = indices.shape
    heads, length = bias.shape[1], bias.shape[-1]
    rows = indices[:, None, :, None].expand(-1, heads, -1, length)
    selected = bias.expand(samples, -1, -1, -1).gather(2, rows)
    return selected.gather(3, indices[:, None, None, :].expand(-1, heads, kept, -1))
