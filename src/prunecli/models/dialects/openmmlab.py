"""Weights of mmpretrain (ResNet, vision transformers) and mmsegmentation (SegFormer's encoder) by other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunecli.errors import ModelError
from prunecli.models.dialects import segformer
from prunecli.models.dialects.dialect import ForeignRequest, Translation

_Tensors = Mapping[str, Tensor]
_Patterns = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

_VIT: _Patterns = (
    (r"backbone\.(cls_token|pos_embed)", r"\1"),
    (r"backbone\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"backbone\.layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"backbone\.layers\.(\d+)\.attn\.(qkv|proj)\.", r"blocks.\1.attn.\2."),
    (r"backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"backbone\.layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"backbone\.ln1\.", "norm."),
    (r"head\.layers\.head\.", "head."),
)
_RESNET: _Patterns = ((r"backbone\.", ""), (r"head\.fc\.", "fc."))
_SEGFORMER: _Patterns = (
    (r"layers\.(\d)\.0\.projection\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj."),
    (r"layers\.(\d)\.0\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm."),
    (r"layers\.(\d)\.1\.(\d+)\.attn\.attn\.out_proj\.", lambda m: f"{_block(m)}attn.proj."),
    (r"layers\.(\d)\.1\.(\d+)\.attn\.(sr|norm)\.", lambda m: f"{_block(m)}attn.{m[3]}."),
    (r"layers\.(\d)\.1\.(\d+)\.norm([12])\.", lambda m: f"{_block(m)}norm{m[3]}."),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.0\.", lambda m: f"{_block(m)}mlp.fc1."),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.1\.", lambda m: f"{_block(m)}mlp.dwconv.dwconv."),
    (r"layers\.(\d)\.1\.(\d+)\.ffn\.layers\.4\.", lambda m: f"{_block(m)}mlp.fc2."),
    (r"layers\.(\d)\.2\.", lambda m: f"norm{int(m[1]) + 1}."),
)
"""To NVIDIA's names."""
_PACKED = re.compile(r"layers\.(\d)\.1\.(\d+)\.attn\.attn\.in_proj_(weight|bias)")
_CONVOLUTION = 4


def _block(match: re.Match[str]) -> str:
    return f"block{int(match[1]) + 1}.{match[2]}."


def _renamed(name: str, patterns: _Patterns) -> str:
    for pattern, new in patterns:
        renamed, count = re.subn(f"^{pattern}", new, name)
        if count:
            return renamed
    return name


@dataclass(frozen=True)
class _Renaming:
    """Networks of mmpretrain, which differ from the catalogue's in names alone.

    Attributes:
        signs: Names that together only its weights have.
        patterns: What begins a name, and what takes its place.
    """

    signs: tuple[str, ...]
    patterns: _Patterns

    def translate(self, tensors: _Tensors, request: ForeignRequest) -> Translation | None:
        """Renames the weights."""
        if not all(sign in tensors for sign in self.signs):
            return None
        return Translation({_renamed(name, self.patterns): tensor for name, tensor in tensors.items()})


class _SegFormer:
    """mmsegmentation's SegFormer: queries, keys and values are packed, linear layers are convolutions of size 1."""

    def translate(self, tensors: _Tensors, request: ForeignRequest) -> Translation | None:
        """The encoder by NVIDIA's names, which are then translated.

        Raises:
            ModelError: There is a decoder, which is not the catalogue's.
        """
        bare = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
        if not any(_PACKED.fullmatch(name) for name in bare):
            return None
        if any(name.startswith("decode_head.") for name in bare):
            raise ModelError(
                f"{request.path}: is mmsegmentation's SegFormer, whose decoder normalises each projection and is not "
                "the catalogue's; take the encoder alone, --strip-prefix backbone., and finetune a new decoder"
            )
        renamed: dict[str, Tensor] = {}
        for name, tensor in bare.items():
            if (match := _PACKED.fullmatch(name)) is not None:
                width = tensor.shape[0] // 3
                renamed[f"{_block(match)}attn.q.{match[3]}"] = tensor[:width].clone()
                renamed[f"{_block(match)}attn.kv.{match[3]}"] = tensor[width:].clone()
                continue
            new = _renamed(name, _SEGFORMER)
            linear = new.endswith(("mlp.fc1.weight", "mlp.fc2.weight")) and tensor.dim() == _CONVOLUTION
            renamed[new] = tensor.flatten(1) if linear else tensor
        return segformer.NVIDIA.translate(renamed, request)


VIT = _Renaming(("backbone.patch_embed.projection.weight", "backbone.layers.0.ln1.weight"), _VIT)
RESNET = _Renaming(("backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "head.fc.weight"), _RESNET)
SEGFORMER = _SegFormer()
