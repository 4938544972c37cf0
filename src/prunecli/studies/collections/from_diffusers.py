"""`diffusers:...`: U-Nets, autoencoders and diffusion transformers in small sizes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunecli.studies.collections.network import Network, images

PACKAGE = "diffusers"

_TEXT, _TOKENS = 40, 7
"""Width and number of the tokens of a text."""


class _Shape(NamedTuple):
    """A class of diffusers, its arguments, and what makes inputs of a batch size and an image size."""

    class_name: str
    arguments: dict[str, Any]
    inputs: Callable[[int, int], dict[str, Any]]
    size: int = 16
    other: int = 32


def _noisy(channels: int, name: str = "sample") -> Callable[[int, int], dict[str, Any]]:
    return lambda batch, size: {name: images(batch, channels, size, size), "timestep": _steps(batch)}


def _told(channels: int, name: str = "sample", **extra: int) -> Callable[[int, int], dict[str, Any]]:
    """Noisy images with a text; `extra` are further vectors by name and width."""
    noisy = _noisy(channels, name)
    return lambda batch, size: {
        **noisy(batch, size),
        "encoder_hidden_states": torch.randn(batch, _TOKENS, _TEXT),
        **{key: torch.randn(batch, width) for key, width in extra.items()},
    }


def _labelled(batch: int, size: int) -> dict[str, Any]:
    return {
        "hidden_states": images(batch, 4, size, size),
        "timestep": _steps(batch),
        "class_labels": torch.arange(batch),
    }


def _clip(batch: int, size: int) -> dict[str, Any]:
    return {
        "sample": images(batch, 4, 3, size, size),
        "timestep": _steps(batch),
        "encoder_hidden_states": torch.randn(batch, _TOKENS, _TEXT),
    }


def _packed(batch: int, size: int) -> dict[str, Any]:
    """Latents as a sequence of patches, as Flux takes them."""
    side = size // 4
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(-1, 2)
    return {
        "hidden_states": torch.randn(batch, side * side, 8),
        "encoder_hidden_states": torch.randn(batch, _TOKENS, _TEXT),
        "pooled_projections": torch.randn(batch, 24),
        "timestep": torch.rand(batch),
        "img_ids": torch.cat([torch.zeros(side * side, 1), places], 1),
        "txt_ids": torch.zeros(_TOKENS, 3),
    }


def _plain(batch: int, size: int) -> dict[str, Any]:
    return {"sample": images(batch, 3, size, size)}


def _steps(batch: int) -> Tensor:
    return torch.randint(0, 1000, (batch,))


_BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
_CONDITIONED = {
    **_BLOCKS,
    "cross_attention_dim": _TEXT,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_HEADS = {"num_layers": 2, "attention_head_dim": 12, "num_attention_heads": 4}
_NETWORKS = {
    "unet2d": _Shape(
        "UNet2DModel",
        {
            **_BLOCKS,
            "sample_size": 16,
            "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        _noisy(3),
    ),
    "unet2d-conditioned": _Shape("UNet2DConditionModel", {**_CONDITIONED, "sample_size": 16}, _told(4)),
    "controlnet": _Shape(
        "ControlNetModel",
        {key: value for key, value in _CONDITIONED.items() if key != "up_block_types"}
        | {"conditioning_embedding_out_channels": (8, 16)},
        lambda batch, size: _told(4)(batch, size) | {"controlnet_cond": images(batch, 3, 2 * size, 2 * size)},
    ),
    "unet3d-conditioned": _Shape(
        "UNet3DConditionModel",
        {
            **_BLOCKS,
            "cross_attention_dim": _TEXT,
            "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        _clip,
    ),
    "autoencoderkl": _Shape(
        "AutoencoderKL",
        {
            **_BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        _plain,
        32,
        48,
    ),
    "autoencodertiny": _Shape(
        "AutoencoderTiny",
        {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4},
        _plain,
        32,
        48,
    ),
    "vq": _Shape(
        "VQModel",
        {
            **_BLOCKS,
            "num_vq_embeddings": 32,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        _plain,
        32,
        48,
    ),
    "dit": _Shape(
        "DiTTransformer2DModel",
        {**_HEADS, "sample_size": 16, "norm_num_groups": 8, "num_embeds_ada_norm": 10},
        _labelled,
        16,
        16,
    ),
    "pixart": _Shape(
        "PixArtTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "cross_attention_dim": 48,
            "caption_channels": _TEXT,
            "norm_num_groups": 8,
            "use_additional_conditions": False,
        },
        _told(4, "hidden_states"),
        16,
        16,
    ),
    "sd3": _Shape(
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": _TEXT,
            "caption_projection_dim": 48,
            "pooled_projection_dim": 24,
            "pos_embed_max_size": 16,
        },
        _told(4, "hidden_states", pooled_projections=24),
        16,
        24,
    ),
    "flux": _Shape(
        "FluxTransformer2DModel",
        {
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": _TEXT,
            "pooled_projection_dim": 24,
            "axes_dims_rope": (4, 4, 8),
        },
        _packed,
    ),
    "transformer2d": _Shape(
        "Transformer2DModel",
        {**_HEADS, "in_channels": 16, "norm_num_groups": 8, "cross_attention_dim": _TEXT, "num_layers": 1},
        lambda batch, size: {
            "hidden_states": images(batch, 16, size, size),
            "encoder_hidden_states": torch.randn(batch, _TOKENS, _TEXT),
        },
    ),
}


def names() -> list[str]:
    """U-Nets, autoencoders and transformers."""
    return list(_NETWORKS)


def network(name: str) -> Network:
    """One of `names()`."""
    library = import_module("diffusers")
    shape = _NETWORKS[name]

    def build() -> nn.Module:
        model: nn.Module = getattr(library, shape.class_name)(**shape.arguments)
        return model

    return Network(
        f"diffusers:{name}", build, lambda: shape.inputs(1, shape.size), lambda: shape.inputs(2, shape.other)
    )
