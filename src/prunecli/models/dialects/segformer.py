"""SegFormer weights under other people's names: NVIDIA's, Hugging Face's hub's and bubbliiiing's.

NVIDIA's code (`backbone.block1.0.attn.kv`, `decode_head.linear_c4`) and the PyTorch port of it by bubbliiiing use the
same names; only the first has the unused `decode_head.conv_seg` of its framework. Both keep keys and values in one
layer. Files on the hub (`segformer.encoder.block.0.0.attention.self.query`) have the names that transformers had
before version 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.models.catalog import build
from prunecli.models.dialects.dialect import ForeignRequest, Translation
from prunecli.models.segformer import SIZES

# What follows the numbers of stage and block: their name, our name.
_NVIDIA_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention.q_proj",
    "attn.proj": "attention.o_proj",
    "attn.sr": "attention.sequence_reduction.sequence_reduction",
    "attn.norm": "attention.sequence_reduction.layer_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
}
_HUB_BLOCK = {
    "layer_norm_1": "layernorm_before",
    "layer_norm_2": "layernorm_after",
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
    "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
    "attention.output.dense": "attention.o_proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
}
_NVIDIA_HEAD = {
    "decode_head.linear_fuse.conv": "decode_head.linear_fuse",
    "decode_head.linear_fuse.bn": "decode_head.batch_norm",
    "decode_head.linear_pred": "decode_head.classifier",
}
# Layers that play no part in segmentation: an ImageNet classifier, and one that NVIDIA's framework never calls.
_CLASSIFIER = "decode_head.classifier.weight"
_UNUSED = re.compile(r"(decode_head\.conv_seg|(backbone\.)?head|classifier)\.(weight|bias)")
_BLOCK_NORMS = re.compile(r"segformer\.stages\.\d\.(blocks\.\d+\.layernorm_\w+|layer_norm)")


@dataclass(frozen=True)
class _Publisher:
    """Who published weights, and the epsilons that they trained with where these are not those of transformers."""

    name: str
    block_epsilon: float | None = None
    batch_epsilon: float | None = None

    def set_epsilons(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            if self.block_epsilon and isinstance(module, nn.LayerNorm) and _BLOCK_NORMS.fullmatch(name):
                module.eps = self.block_epsilon
            elif self.batch_epsilon and isinstance(module, nn.BatchNorm2d):
                module.eps = self.batch_epsilon


_HUGGING_FACE = _Publisher("Hugging Face")
_NVIDIA = _Publisher("NVIDIA", 1e-6)
_BUBBLIIIING = _Publisher("bubbliiiing", 1e-6, 1e-3)


@dataclass(frozen=True)
class _Layout:
    """One way to name SegFormer's layers.

    Attributes:
        sign: Matches the beginning of a name that only this layout has.
        rename: A tensor by our names; several where it is divided.
        publisher: Who published weights, by their names.
    """

    sign: re.Pattern[str]
    rename: Callable[[str, Tensor], Mapping[str, Tensor]]
    publisher: Callable[[Mapping[str, Tensor]], _Publisher] = lambda tensors: _HUGGING_FACE

    def translate(self, tensors: Mapping[str, Tensor], request: ForeignRequest) -> Translation | None:
        """Renames the weights, and adds a new decoder or classifier where one is missing."""
        if not any(self.sign.match(name) for name in tensors):
            return None
        renamed: dict[str, Tensor] = {}
        try:
            for name, tensor in tensors.items():
                if not _UNUSED.fullmatch(name):
                    renamed |= self.rename(name, tensor)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelError(
                f"{request.path}: has SegFormer's names with other shapes; get the weights again"
            ) from error
        publisher = self.publisher(tensors)
        complete, note = _with_new_head(renamed, request)
        notes = [f"{publisher.name}'s names of SegFormer's weights"]
        notes += [f"{request.path}: {note}"] if note else []
        return Translation(complete, notes=tuple(notes), adapt=publisher.set_epsilons)


def reference_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Which of b0 to b5 renamed weights belong to.

    Raises:
        ModelError: None of them has these depths and widths.
    """
    depths, widths = [], []
    for stage in range(4):
        matches = [re.match(rf"segformer\.stages\.{stage}\.blocks\.(\d+)\.", name) for name in tensors]
        depths.append(1 + max((int(match[1]) for match in matches if match), default=-1))
        norm = tensors.get(f"segformer.stages.{stage}.layer_norm.weight")
        widths.append(len(norm) if norm is not None else 0)
    decoder = tensors.get("decode_head.linear_fuse.weight")
    fitting = [
        name
        for name, size in SIZES.items()
        if size.depths == tuple(depths)
        and size.hidden_sizes == tuple(widths)
        and (decoder is None or size.decoder_hidden_size == len(decoder))
    ]
    if not fitting:
        raise ModelError(
            f"{path}: a SegFormer with {depths} blocks and {widths} channels in its stages is not one of b0 to b5"
        )
    return f"segformer:{fitting[0]}"


def _with_new_head(tensors: dict[str, Tensor], request: ForeignRequest) -> tuple[dict[str, Tensor], str | None]:
    """The tensors and newly initialised ones for what they lack, with a note where that is something.

    An encoder alone gets a new decoder. A whole network gets a new classifier where it has another number of classes
    than the user wants.
    """
    ref = request.arch or reference_of(tensors, request.path)
    classifier = tensors.get(_CLASSIFIER)
    if classifier is not None and request.num_classes in (None, len(classifier)):
        return tensors, None
    first = tensors["segformer.stages.0.patch_embeddings.proj.weight"]
    count = request.num_classes if request.num_classes is not None else request.data_classes()
    classes: dict[str, Any] = {} if count is None else {"num_classes": count}
    fresh = build(ref, in_chans=first.shape[1], **classes).state_dict()
    if classifier is not None:
        new = {name: tensor for name, tensor in fresh.items() if name.startswith("decode_head.classifier.")}
        note = f"its classifier for {len(classifier)} classes is replaced by a new one, which has to be trained"
        return tensors | new, note
    head = {name: tensor for name, tensor in fresh.items() if name.startswith("decode_head.")}
    return head | tensors, "holds an encoder alone; the decoder has new weights and has to be trained"


def _from_nvidia(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if kv := re.fullmatch(r"(?:backbone\.)?block(\d)\.(\d+)\.attn\.kv\.(weight|bias)", name):
        prefix = f"segformer.stages.{int(kv[1]) - 1}.blocks.{kv[2]}.attention"
        # The fused layer's output is reshaped to (2, heads, head_dim): all keys, then all values.
        key, value = torch.chunk(tensor, 2)
        return {f"{prefix}.k_proj.{kv[3]}": key.clone(), f"{prefix}.v_proj.{kv[3]}": value.clone()}
    return {_nvidia_name(name): tensor}


def _nvidia_name(name: str) -> str:
    rest = name.removeprefix("backbone.")
    if match := re.fullmatch(r"block(\d)\.(\d+)\.(.+)\.(weight|bias)", rest):
        layer = _NVIDIA_BLOCK.get(match[3], match[3])
        return f"segformer.stages.{int(match[1]) - 1}.blocks.{match[2]}.{layer}.{match[4]}"
    if match := re.fullmatch(r"patch_embed(\d)\.(proj|norm)\.(weight|bias)", rest):
        layer = "layer_norm" if match[2] == "norm" else "proj"
        return f"segformer.stages.{int(match[1]) - 1}.patch_embeddings.{layer}.{match[3]}"
    if match := re.fullmatch(r"norm(\d)\.(weight|bias)", rest):
        return f"segformer.stages.{int(match[1]) - 1}.layer_norm.{match[2]}"
    if match := re.fullmatch(r"decode_head\.linear_c(\d)\.proj\.(weight|bias)", name):
        return f"decode_head.linear_projections.{int(match[1]) - 1}.proj.{match[2]}"
    owner, _, leaf = name.rpartition(".")
    return f"{_NVIDIA_HEAD.get(owner, owner)}.{leaf}"


def _hub_name(name: str) -> str:
    rest = name.removeprefix("segformer.")
    if match := re.fullmatch(r"encoder\.block\.(\d)\.(\d+)\.(.+)\.(weight|bias)", rest):
        layer = _HUB_BLOCK.get(match[3], match[3])
        return f"segformer.stages.{match[1]}.blocks.{match[2]}.{layer}.{match[4]}"
    if match := re.fullmatch(r"encoder\.patch_embeddings\.(\d)\.(.+)", rest):
        return f"segformer.stages.{match[1]}.patch_embeddings.{match[2]}"
    if match := re.fullmatch(r"encoder\.layer_norm\.(\d)\.(weight|bias)", rest):
        return f"segformer.stages.{match[1]}.layer_norm.{match[2]}"
    return re.sub(r"^decode_head\.linear_c\.(\d)\.", r"decode_head.linear_projections.\1.", name)


def _own_name(name: str) -> str:
    return f"segformer.{name}" if name.startswith("stages.") else name


def _publisher(tensors: Mapping[str, Tensor]) -> _Publisher:
    """NVIDIA's framework has a layer that nothing uses; encoders alone came from NVIDIA."""
    has_decoder = any(name.startswith("decode_head.") for name in tensors)
    return _NVIDIA if "decode_head.conv_seg.weight" in tensors or not has_decoder else _BUBBLIIIING


NVIDIA = _Layout(re.compile(r"(backbone\.)?block1\.0\.attn\.kv\."), _from_nvidia, _publisher)
"""NVIDIA's names, and bubbliiiing's."""
HUB = _Layout(
    re.compile(r"(segformer\.)?encoder\.block\.0\.0\.attention\.self\."),
    lambda name, tensor: {_hub_name(name): tensor},
)
"""Names of files on Hugging Face's hub."""
TRANSFORMERS = _Layout(
    re.compile(r"(segformer\.)?stages\.0\.blocks\.0\.attention\.q_proj\."),
    lambda name, tensor: {_own_name(name): tensor},
)
"""The catalogue's names; an encoder alone has them without their prefix."""
