"""What the parts of transformers' vision transformers are called: ViT, DeiT, DINOv2, CLIP, SigLIP and others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_LISTS = ("layers", "layer")
_AROUND = ("", "encoder")
"""Where the blocks are below the model that embeds patches."""
_READ_FIRST = ("ViT", "DeiT", "CLIP", "BLIP")
"""How the names of classes begin whose heads read the class token alone."""
_TOKENS = ("cls_token", "distillation_token", "register_tokens", "class_embedding")
"""Parameters of embeddings that come before the patches."""
_MATRIX = 2


@dataclass(frozen=True)
class Names:
    """Names of a block's parts.

    Attributes:
        norm: Before the attention.
        attention: The attention.
        after: What its output goes through, in order.
        second_norm: Before the MLP, which is called `mlp`.
        second_after: What the output of the MLP goes through.
    """

    norm: str
    attention: str
    after: tuple[str, ...]
    second_norm: str
    second_after: tuple[str, ...]


_FAMILIES = (
    Names("layernorm_before", "attention", ("dropout",), "layernorm_after", ("dropout",)),  # ViT, DeiT
    Names("norm1", "attention", ("layer_scale1", "drop_path"), "norm2", ("layer_scale2", "drop_path")),  # DINOv2
    Names("layer_norm1", "self_attn", (), "layer_norm2", ()),  # CLIP, SigLIP
)


def names_of(block: nn.Module) -> Names | None:
    """Names of the parts of a block; None if it is none of these."""
    children = {name for name, _ in block.named_children()}
    for names in _FAMILIES:
        parts = {names.norm, names.attention, *names.after, names.second_norm, *names.second_after, "mlp"}
        attention = block._modules.get(names.attention)
        if children == parts and attention is not None and all(hasattr(attention, f"{p}_proj") for p in "qkv"):
            return names
    return None


def attention_part(block: Any, names: Names, x: Tensor, mask: Tensor | None) -> Tensor:
    """x plus the output of the attention.

    Args:
        block: The block.
        names: Names of its parts.
        x: Tokens, shape (N, L, C).
        mask: Added to attention scores, shape (N, 1, 1, L).
    """
    options = {} if mask is None else {"attention_mask": mask.to(x.dtype).expand(-1, 1, x.shape[1], -1)}
    attended = getattr(block, names.attention)(getattr(block, names.norm)(x), **options)
    return x + _through(block, names.after, attended[0] if isinstance(attended, tuple) else attended)


def mlp_part(block: Any, names: Names, x: Tensor) -> Tensor:
    """x plus the output of the MLP."""
    return x + _through(block, names.second_after, block.mlp(getattr(block, names.second_norm)(x)))


def _through(block: Any, names: tuple[str, ...], x: Tensor) -> Tensor:
    for name in names:
        x = getattr(block, name)(x)
    return x


def is_masked(block: nn.Module, args: tuple[Any, ...], options: Mapping[str, Any]) -> bool:
    """Whether one of these blocks is called with a mask of its attention."""
    if names_of(block) is None:
        return False
    return isinstance(args[1] if len(args) > 1 else options.get("attention_mask"), Tensor)


def blocks_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the blocks below a model that embeds patches; empty if it is none of these."""
    if getattr(module, "main_input_name", None) != "pixel_values" or not hasattr(module, "embeddings"):
        return ()
    for around in _AROUND:
        owner = getattr(module, around, None) if around else module
        for listed in _LISTS:
            blocks = getattr(owner, listed, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks) and all(names_of(block) for block in blocks):
                path = ".".join(part for part in (around, listed) if part)
                return tuple(f"{path}.{index}" for index in range(len(blocks)))
    return ()


def prefix_of(module: nn.Module) -> int:
    """How many tokens come before those of patches."""
    embeddings: Any = module.embeddings
    tokens = [getattr(embeddings, name, None) for name in _TOKENS]
    given = [token for token in tokens if isinstance(token, Tensor)]
    return sum(token.shape[-2] if token.dim() >= _MATRIX else 1 for token in given)


def reads_first_token(model: nn.Module) -> bool:
    """Whether the head of a model reads the class token alone."""
    return type(model).__name__.startswith(_READ_FIRST)


def grid_of(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of patches; None if the model does not say."""
    embeddings: Any = getattr(module, "embeddings", None)
    for owner in (getattr(embeddings, "patch_embeddings", None), embeddings):
        size, patch = getattr(owner, "image_size", None), getattr(owner, "patch_size", None)
        if size is not None and patch is not None:
            rows, columns = (size, size) if isinstance(size, int) else size
            high, wide = (patch, patch) if isinstance(patch, int) else patch
            return int(rows) // int(high), int(columns) // int(wide)
    return None
