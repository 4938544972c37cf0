"""The two halves of a transformer block, so that tokens can be dropped or merged between attention and MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunecli.tokens.hugging_face import attention_part, mlp_part, names_of
from prunecli.tokens.towers import block_style


def attention_input(block: nn.Module, x: Tensor) -> Tensor:
    """Input of the block's attention, shape (N, L, C)."""
    names = names_of(block)
    own = names.norm if names is not None else "ln_1" if block_style(block) == "open_clip" else "norm1"
    norm: Any = getattr(block, own)
    normed: Tensor = norm(x)
    return normed


def attention_half(block: Any, x: Tensor, options: dict[str, Any], mask: Tensor | None = None) -> Tensor:
    """x plus the output of the attention.

    Args:
        block: A block of a known `block_style`.
        x: Tokens, shape (N, L, C).
        options: Keyword arguments of the call of the block.
        mask: Added to attention scores, shape (N, 1, 1, L), instead of the block's own mask.
    """
    names = names_of(block)
    if names is not None:
        return attention_part(block, names, x, mask)
    style = block_style(block)
    if style == "open_clip":
        attn_mask = options.get("attn_mask")
        if mask is not None:
            attn_mask = _for_open_clip(block.attn, mask, x.shape[1])
        if hasattr(block, "ln_attn"):
            attended = block.ln_attn(block.attn(block.ln_1(x), attn_mask=attn_mask))
        else:
            attended = block.attention(q_x=block.ln_1(x), attn_mask=attn_mask)
        return x + block.ls_1(attended)  # type: ignore[no-any-return]
    if mask is not None:
        options = {**options, "attn_mask": mask}
    attended = block.attn(block.norm1(x), **options)
    if style == "layer_scale":
        attended = block.ls1(attended)
    elif block.gamma_1 is not None:
        attended = block.gamma_1 * attended
    return x + block.drop_path1(attended)  # type: ignore[no-any-return]


def mlp_half(block: Any, x: Tensor) -> Tensor:
    """x plus the output of the MLP."""
    names = names_of(block)
    if names is not None:
        return mlp_part(block, names, x)
    style = block_style(block)
    if style == "open_clip":
        return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]
    update = block.mlp(block.norm2(x))
    if style == "layer_scale":
        update = block.ls2(update)
    elif block.gamma_2 is not None:
        update = block.gamma_2 * update
    return x + block.drop_path2(update)  # type: ignore[no-any-return]


def _for_open_clip(attention: nn.Module, mask: Tensor, length: int) -> Tensor:
    """A mask of shape (N, 1, 1, L) as nn.MultiheadAttention and open_clip's Attention take it: (N x heads, L, L)."""
    heads: Any = attention.num_heads
    return mask.expand(-1, heads, length, -1).flatten(0, 1)
