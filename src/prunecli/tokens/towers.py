"""Finding the blocks of a vision transformer, and what its tokens are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from prunecli.errors import MethodError
from prunecli.inputs import Inputs, call
from prunecli.tokens.hugging_face import blocks_of, grid_of, names_of, prefix_of, reads_first_token

_Style = Literal["open_clip", "layer_scale", "gamma", "hugging_face", "other"]
"""How a block adds the output of its attention: see `tokens.blocks`."""
_ROPE = ("EvaAttention", "AttentionRope")
_ATTENTIONS = ("Attention", "MultiheadAttention", *_ROPE)
"""Classes with queries and keys that `tokens.attention` can compute."""


@dataclass(frozen=True)
class Tower:
    """A vision transformer inside a model.

    Attributes:
        name: Dotted name of the module that owns the blocks; empty for the model itself.
        blocks: Dotted names of the blocks, in order.
        prefix: Number of tokens before those of patches (class and register tokens).
        by_class_token: Whether the head reads the first token alone, so its attention measures importance.
        rope: Whether attention uses rotary embeddings.
        relative_bias: Whether attention adds relative position biases.
    """

    name: str
    blocks: tuple[str, ...]
    prefix: int
    by_class_token: bool
    rope: bool
    relative_bias: bool


def find_tower(model: nn.Module) -> Tower:
    """Finds the vision transformer in a model of timm, open_clip or transformers.

    Raises:
        MethodError: There is none; the message says what the model has.
    """
    for name, module in _candidates(model):
        described = _describe(name, module)
        if described is not None:
            return described
    for name, module in model.named_modules():
        blocks = blocks_of(module)
        if blocks:
            dot = f"{name}." if name else ""
            first = reads_first_token(model)
            names = tuple(f"{dot}{block}" for block in blocks)
            return Tower(name, names, prefix_of(module), first, rope=False, relative_bias=False)
    visual = getattr(model, "visual", None)
    kind = type(getattr(visual, "trunk", visual) if visual is not None else model).__name__
    raise MethodError(
        f"{kind} is not a vision transformer of timm, open_clip or transformers that can leave tokens out: "
        "convolutional networks and windowed attention need the whole feature map; choose a ViT, DeiT, BEiT, EVA, "
        "DINOv2 or a CLIP tower"
    )


def token_count(model: nn.Module, tower: Tower, inputs: Inputs) -> int:
    """Number of tokens at the first block, prefix tokens included."""
    lengths: list[int] = []
    first = model.get_submodule(tower.blocks[0])
    hook = first.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        hook.remove()
    return lengths[0]


def block_style(block: nn.Module) -> _Style:
    """The style of a block, by the names of its modules."""
    if names_of(block) is not None:
        return "hugging_face"
    names = {name for name, _ in block.named_children()}
    if {"ln_1", "attn", "ls_1", "mlp", "ln_2", "ls_2"} <= names and "ln_1_kv" not in names:
        return "open_clip"
    if {"norm1", "attn", "ls1", "mlp", "norm2", "ls2"} <= names:
        return "layer_scale"
    if {"norm1", "attn", "mlp", "norm2"} <= names and hasattr(block, "gamma_1"):
        return "gamma"
    return "other"


def attention_of(block: nn.Module) -> nn.Module:
    """The attention of a block of a known style."""
    names = names_of(block)
    attention: nn.Module = getattr(block, names.attention if names is not None else "attn")
    return attention


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ("", "visual", "visual.trunk", "trunk"):
        try:
            yield name, model.get_submodule(name)
        except AttributeError:
            continue


def _describe(name: str, module: nn.Module) -> Tower | None:
    dot = f"{name}." if name else ""
    transformer = getattr(module, "transformer", None)
    if hasattr(module, "class_embedding") and hasattr(transformer, "resblocks"):
        names = tuple(f"{dot}transformer.resblocks.{index}" for index in range(len(transformer.resblocks)))  # type: ignore[union-attr]
        by_class_token = module.pool_type == "tok" and module.attn_pool is None
        return _known(Tower(name, names, 1, by_class_token, rope=False, relative_bias=False), module)
    blocks = getattr(module, "blocks", None)
    if not hasattr(module, "patch_embed") or not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        return None
    if not hasattr(blocks[0], "attn") or not hasattr(module, "num_prefix_tokens"):
        return None
    attention: Any = blocks[0].attn
    # Unsupported: a separate module that makes the relative biases, rotary embeddings that differ between blocks, a
    # class token that joins after the blocks, or neighbouring tokens that are merged there.
    bias_modules = (getattr(attention, "rel_pos", None), getattr(module, "shared_rel_pos", None))
    later = any(hasattr(module, name) for name in ("blocks_token_only", "merger"))
    if any(part is not None for part in bias_modules) or later or getattr(module, "rope_mixed", False):
        return None
    prefix: Any = module.num_prefix_tokens
    pool: Any = getattr(module, "global_pool", "")
    by_class_token = bool(prefix) and pool == "token" and getattr(module, "attn_pool", None) is None
    relative_bias = getattr(attention, "relative_position_bias_table", None) is not None
    relative_bias = relative_bias or getattr(module, "rel_pos_bias", None) is not None
    rope = type(attention).__name__ in _ROPE and getattr(module, "rope", None) is not None
    names = tuple(f"{dot}blocks.{index}" for index in range(len(blocks)))
    return _known(Tower(name, names, int(prefix), by_class_token, rope, relative_bias), module)


def _known(tower: Tower, module: nn.Module) -> Tower | None:
    """The tower, if all its blocks are of a known kind."""
    dot = f"{tower.name}." if tower.name else ""
    blocks = [module.get_submodule(name.removeprefix(dot)) for name in tower.blocks]
    known = (block_style(block) != "other" and type(block.attn).__name__ in _ATTENTIONS for block in blocks)
    return tower if all(known) else None


def patch_grid(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of patches; None if the tower does not say."""
    for owner in (module, getattr(module, "patch_embed", None)):
        size: Any = getattr(owner, "grid_size", None)
        if size is not None:
            return (int(size[0]), int(size[1]))
    return grid_of(module)
