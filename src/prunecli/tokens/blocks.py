"""The two halves of a transformer block, for leaving tokens out or merging them between attention and MLP."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunecli.tokens.towers import block_style


def attention_input(block: nn.Module, x: Tensor) -> Tensor:
    """What the block's attention reads."""
    norm: Any = block.ln_1 if block_style(block) == "open_clip" else block.norm1
    normed: Tensor = norm(x)
    return normed


def attention_half(block: Any, x: Tensor, options: dict[str, Any], mask: Tensor | None = None) -> Tensor:
    """x plus the attention's part.

    Args:
        block: A block of a known style.
        x: Tokens, shape (N, L, C).
        options: Keyword arguments that the block was called with.
        mask: Added to attention scores, shape (N, 1, 1, L), in place of the block's own mask.
    """
    style = block_style(block)
    if style == "open_clip":
        given = options.get("attn_mask")
        if mask is not None:
            given = _for_open_clip(block.attn, mask, x.shape[1])
        if hasattr(block, "ln_attn"):
            attended = block.ln_attn(block.attn(block.ln_1(x), attn_mask=given))
        else:
            attended = block.attention(q_x=block.ln_1(x), attn_mask=given)
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
    """x plus the MLP's part."""
    style = block_style(block)
    if style == "open_clip":
        return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]
    widened = block.mlp(block.norm2(x))
    if style == "layer_scale":
        widened = block.ls2(widened)
    elif block.gamma_2 is not None:
        widened = block.gamma_2 * widened
    return x + block.drop_path2(widened)  # type: ignore[no-any-return]


def _for_open_clip(attention: nn.Module, mask: Tensor, length: int) -> Tensor:
    """A mask of shape (N, 1, 1, L) as nn.MultiheadAttention and open_clip's own take it: (N x heads, L, L)."""
    heads: Any = attention.num_heads
    return mask.expand(-1, heads, length, -1).flatten(0, 1)
