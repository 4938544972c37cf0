"""Where a vision transformer keeps its blocks, and what its tokens are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from prunecli.errors import MethodError
from prunecli.inputs import Inputs, call

Style = Literal["open_clip", "layer_scale", "gamma", "other"]
"""How a block adds its attention up: see `tokens.blocks`."""
_ROPE = ("EvaAttention", "AttentionRope")
_ATTENTIONS = ("Attention", "MultiheadAttention", *_ROPE)
"""Classes whose queries and keys `tokens.attention` makes as they do."""


@dataclass(frozen=True)
class Tower:
    """A vision transformer inside a model.

    Attributes:
        name: Dotted name of the module that owns the blocks; empty for the model itself.
        blocks: Dotted names of the blocks, in order.
        prefix: Tokens before those of patches (class and register tokens).
        by_class_token: Whether the first token is what is read at the end, so its attention says what matters.
        rope: Whether attention turns queries and keys by their places.
        place_bias: Whether attention adds a bias for each pair of places.
    """

    name: str
    blocks: tuple[str, ...]
    prefix: int
    by_class_token: bool
    rope: bool
    place_bias: bool


def find_tower(model: nn.Module) -> Tower:
    """Finds the vision transformer in a model of timm or open_clip.

    Raises:
        MethodError: There is none; the message says what was found.
    """
    for name, module in _candidates(model):
        described = _describe(name, module)
        if described is not None:
            return described
    visual = getattr(model, "visual", None)
    kind = type(getattr(visual, "trunk", visual) if visual is not None else model).__name__
    raise MethodError(
        f"{kind} is no vision transformer of timm or open_clip whose tokens can be left out: convolutional networks "
        "and windowed attention keep a map of places; choose a ViT, DeiT, BEiT, EVA or an open_clip ViT tower"
    )


def token_count(model: nn.Module, tower: Tower, inputs: Inputs) -> int:
    """Tokens that the first block is given, those before the patches included."""
    seen: list[int] = []
    first = model.get_submodule(tower.blocks[0])
    hook = first.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        hook.remove()
    return seen[0]


def block_style(block: nn.Module) -> Style:
    """Which of the known kinds a block is."""
    names = {name for name, _ in block.named_children()}
    if {"ln_1", "attn", "ls_1", "mlp", "ln_2", "ls_2"} <= names and "ln_1_kv" not in names:
        return "open_clip"
    if {"norm1", "attn", "ls1", "mlp", "norm2", "ls2"} <= names:
        return "layer_scale"
    if {"norm1", "attn", "mlp", "norm2"} <= names and hasattr(block, "gamma_1"):
        return "gamma"
    return "other"


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
        names = tuple(f"{dot}transformer.resblocks.{place}" for place in range(len(transformer.resblocks)))  # type: ignore[union-attr]
        reads = module.pool_type == "tok" and module.attn_pool is None
        return _known(Tower(name, names, 1, reads, rope=False, place_bias=False), module)
    blocks = getattr(module, "blocks", None)
    if not hasattr(module, "patch_embed") or not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        return None
    if not hasattr(blocks[0], "attn") or not hasattr(module, "num_prefix_tokens"):
        return None
    attention: Any = blocks[0].attn
    # A bias that a module of its own makes for all places, rotary embeddings of each block's own, a class token that
    # joins behind the blocks, or neighbours that are merged there.
    apart = (getattr(attention, "rel_pos", None), getattr(module, "shared_rel_pos", None))
    behind = any(hasattr(module, name) for name in ("blocks_token_only", "merger"))
    if any(part is not None for part in apart) or behind or getattr(module, "rope_mixed", False):
        return None
    prefix: Any = module.num_prefix_tokens
    pool: Any = getattr(module, "global_pool", "")
    reads = bool(prefix) and pool == "token" and getattr(module, "attn_pool", None) is None
    places = getattr(attention, "relative_position_bias_table", None) is not None
    places = places or getattr(module, "rel_pos_bias", None) is not None
    rope = type(attention).__name__ in _ROPE and getattr(module, "rope", None) is not None
    names = tuple(f"{dot}blocks.{place}" for place in range(len(blocks)))
    return _known(Tower(name, names, int(prefix), reads, rope, places), module)


def _known(tower: Tower, module: nn.Module) -> Tower | None:
    """The tower, if every block is of a known kind."""
    dot = f"{tower.name}." if tower.name else ""
    blocks = [module.get_submodule(name.removeprefix(dot)) for name in tower.blocks]
    known = (block_style(block) != "other" and type(block.attn).__name__ in _ATTENTIONS for block in blocks)
    return tower if all(known) else None


def patch_grid(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of patches, where the tower says."""
    for owner in (module, getattr(module, "patch_embed", None)):
        size: Any = getattr(owner, "grid_size", None)
        if size is not None:
            return (int(size[0]), int(size[1]))
    return None
