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
from prunecli.models.segformer import SIZES

# What follows the stage and block number: theirs, ours.
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
class SegFormerWeights:
    """Weights renamed to the catalogue's names.

    Attributes:
        tensors: By our names.
        origin: Whose names they had.
        has_head: Whether there is a decoder; ImageNet weights are an encoder alone.
    """

    tensors: dict[str, Tensor]
    origin: str
    has_head: bool

    def adapt(self, model: nn.Module) -> None:
        """Gives the normalisations the epsilon they were trained with, where it is not that of transformers."""
        if self.origin == "Hugging Face":
            return
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and _BLOCK_NORMS.fullmatch(name):
                module.eps = 1e-6
            elif isinstance(module, nn.BatchNorm2d) and self.origin == "bubbliiiing" and self.has_head:
                module.eps = 1e-3


def rename(tensors: Mapping[str, Tensor]) -> SegFormerWeights | None:
    """Renames SegFormer weights of any known layout; None when they are something else."""
    nvidia = any(re.match(r"(backbone\.)?block1\.0\.attn\.kv\.", name) for name in tensors)
    hub = any(re.match(r"(segformer\.)?encoder\.block\.0\.0\.attention\.self\.", name) for name in tensors)
    ours = any(re.match(r"(segformer\.)?stages\.0\.blocks\.0\.attention\.q_proj\.", name) for name in tensors)
    if not (nvidia or hub or ours):
        return None
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _UNUSED.fullmatch(name):
            continue
        if nvidia and (kv := re.fullmatch(r"(?:backbone\.)?block(\d)\.(\d+)\.attn\.kv\.(weight|bias)", name)):
            prefix = f"segformer.stages.{int(kv[1]) - 1}.blocks.{kv[2]}.attention"
            # The fused layer's output is reshaped to (2, heads, head_dim): all keys, then all values.
            key, value = torch.chunk(tensor, 2)
            renamed[f"{prefix}.k_proj.{kv[3]}"], renamed[f"{prefix}.v_proj.{kv[3]}"] = key.clone(), value.clone()
        else:
            renamed[_nvidia_name(name) if nvidia else _hub_name(name) if hub else _own_name(name)] = tensor
    origin = "Hugging Face"
    has_head = any(name.startswith("decode_head.") for name in renamed)
    if nvidia:
        origin = "NVIDIA" if "decode_head.conv_seg.weight" in tensors or not has_head else "bubbliiiing"
    return SegFormerWeights(renamed, origin, has_head)


def reference_of(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Which of b0 to b5 renamed weights belong to.

    Raises:
        ModelError: None of them has these depths and widths.
    """
    depths, widths = [], []
    for stage in range(4):
        found = [re.match(rf"segformer\.stages\.{stage}\.blocks\.(\d+)\.", name) for name in tensors]
        depths.append(1 + max((int(match[1]) for match in found if match), default=-1))
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
            f"{path}: a SegFormer with {depths} blocks and {widths} channels in its stages is none of b0 to b5"
        )
    return f"segformer:{fitting[0]}"


def with_new_head(
    weights: SegFormerWeights, ref: str, num_classes: int | None, data_classes: Callable[[], int | None]
) -> tuple[dict[str, Tensor], str | None]:
    """The tensors with what they lack, newly drawn, and a note where that was something.

    Args:
        weights: An encoder alone gets a new decoder, a whole network a new classifier where it has other classes.
        ref: Which SegFormer they belong to.
        num_classes: Classes wanted; None: what there are.
        data_classes: Asked where the weights have no classifier and none is wanted; its None: as many as ADE20K has.
    """
    tensors = dict(weights.tensors)
    classifier = tensors.get(_CLASSIFIER)
    if classifier is not None and num_classes in (None, len(classifier)):
        return tensors, None
    first = tensors["segformer.stages.0.patch_embeddings.proj.weight"]
    wanted = num_classes if num_classes is not None else data_classes()
    classes: dict[str, Any] = {} if wanted is None else {"num_classes": wanted}
    fresh = build(ref, in_chans=first.shape[1], **classes).state_dict()
    if classifier is not None:
        tensors |= {name: t for name, t in fresh.items() if name.startswith("decode_head.classifier.")}
        return tensors, f"its classifier for {len(classifier)} classes gives way to a new one, which has to be trained"
    head = {name: tensor for name, tensor in fresh.items() if name.startswith("decode_head.")}
    return {**head, **tensors}, "holds an encoder alone; the decoder has new weights and has to be trained"


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
