"""Weights of Spikformer under the names of its authors' code, and which Spikformer a state dict belongs to.

The authors' code (on spikingjelly's `clock_driven`) comes in two forms: for CIFAR with linear layers (`q_linear`,
`fc1_linear`), for ImageNet with convolutions (`q_conv`, `fc1_conv`). Both have queries, keys and values in layers of
their own and biases before normalisations, and pool spikes. Their blocks hold layer normalisations that nothing calls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunecli.errors import ModelError
from prunecli.models.dialects.dialect import ForeignRequest, Translation

_STEM = {
    ("proj_conv", "proj_bn"): "stages.0",
    ("proj_conv1", "proj_bn1"): "stages.1",
    ("proj_conv2", "proj_bn2"): "stages.2",
    ("proj_conv3", "proj_bn3"): "stages.3",
    ("rpe_conv", "rpe_bn"): "positional_encoding",
}
_BLOCK = {
    "attn.proj_": ("attn.proj_conv_bn.0", "attn.proj_conv_bn.1"),
    "mlp.fc1_": ("mlp.fc1.0", "mlp.fc1.1"),
    "mlp.fc2_": ("mlp.fc2.0", "mlp.fc2.1"),
}
_PARTS = ("attn.q_", "attn.k_", "attn.v_")
_UNUSED = re.compile(r"block\.\d+\.norm[12]\.(weight|bias)")
_OURS = "patch_embed.stages.0.conv_bn.block.0.weight"
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class _Layout:
    """One way to name Spikformer's layers.

    Attributes:
        sign: Matches a name that only this layout has.
        rename: The tensors by our names.
        pool: Where the stem pools, before or after its neurons, which names alone tell.
    """

    sign: re.Pattern[str]
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    pool: str

    def translate(self, tensors: Mapping[str, Tensor], request: ForeignRequest) -> Translation | None:
        """Renames the weights and reads the architecture's arguments, such as width and depth, from their shapes."""
        if not any(self.sign.fullmatch(name) for name in tensors):
            return None
        try:
            renamed = self.rename(tensors)
            ref, kwargs = _described(renamed, self.pool, convolutional="block.0.attn.q_conv.weight" in tensors)
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{request.path}: has Spikformer's names but not all of its tensors ({error}); get it again"
            ) from error
        notes = () if request.arch else (f"recognised as {ref} by its keys and shapes",)
        return Translation(renamed, ref, kwargs, notes)


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    left = {name: tensor for name, tensor in tensors.items() if not _UNUSED.fullmatch(name)}
    renamed: dict[str, Tensor] = {name: left.pop(name) for name in ("head.weight", "head.bias")}
    for (layer, norm), ours in _STEM.items():
        source = (f"patch_embed.{layer}", f"patch_embed.{norm}")
        prefix = f"patch_embed.{ours}.conv_bn.block"
        renamed |= _pair(left, [source], f"{prefix}.0", f"{prefix}.1", dims=4)
    kind = "linear" if "block.0.attn.q_linear.weight" in left else "conv"
    blocks = sorted({int(name.split(".")[1]) for name in left if name.startswith("block.")})
    for block in blocks:
        prefix = f"block.{block}."
        layers = [(f"{prefix}{part}{kind}", f"{prefix}{part}bn") for part in _PARTS]
        renamed |= _pair(
            left, layers, f"blocks.{block}.attn.qkv_conv_bn.0", f"blocks.{block}.attn.qkv_conv_bn.1", dims=3
        )
        for theirs, (layer, norm) in _BLOCK.items():
            renamed |= _pair(
                left,
                [(f"{prefix}{theirs}{kind}", f"{prefix}{theirs}bn")],
                f"blocks.{block}.{layer}",
                f"blocks.{block}.{norm}",
                dims=3,
            )
    if left:
        raise ValueError(f"unknown tensor {min(left)!r}")
    return renamed


def _pair(
    left: dict[str, Tensor], sources: list[tuple[str, str]], layer: str, norm: str, *, dims: int
) -> dict[str, Tensor]:
    """A layer and the normalisation after it; several such pairs are concatenated along rows.

    A bias before a normalisation only shifts its running mean, so it is subtracted there.
    """
    weights, norms = [], []
    for theirs, theirs_norm in sources:
        weight = left.pop(f"{theirs}.weight")
        while weight.dim() > dims:
            weight = weight.squeeze(-1)
        while weight.dim() < dims:
            weight = weight.unsqueeze(-1)
        weights.append(weight)
        values = {name: left.pop(f"{theirs_norm}.{name}", torch.tensor(0)) for name in _NORM}
        bias = left.pop(f"{theirs}.bias", None)
        if bias is not None:
            values["running_mean"] = values["running_mean"] - bias
        norms.append(values)
    joined = {f"{layer}.weight": torch.cat(weights)}
    for name in _NORM:
        parts = [values[name] for values in norms]
        joined[f"{norm}.{name}"] = parts[0] if parts[0].dim() == 0 else torch.cat(parts)
    return joined


def _described(tensors: Mapping[str, Tensor], pool: str, *, convolutional: bool) -> tuple[str, dict[str, Any]]:
    """The nearest architecture, and the arguments that differ from it."""
    from prunecli.models.spiking_transformers import SPIKFORMERS  # spikingjelly takes seconds to import

    classes, dim = tensors["head.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    hidden = tensors["blocks.0.mlp.fc1.0.weight"].shape[0]
    patch = 16 if convolutional or classes == _IMAGENET_CLASSES else 4
    kwargs: dict[str, Any] = {"num_classes": classes, "in_chans": tensors[_OURS].shape[1]}
    if pool != "before":
        kwargs["pool"] = pool
    if hidden != 4 * dim:
        kwargs["mlp_ratio"] = hidden / dim
    similar = [name for name, (_, width, _, size) in SPIKFORMERS.items() if width == dim and size == patch]
    exact = [name for name in similar if SPIKFORMERS[name][0] == depth]
    name = (exact or similar or ["spikformer-4-384"])[0]
    default_depth, default_dim, heads, default_patch = SPIKFORMERS[name]
    if not similar:
        heads = next(count for count in (8, 4, 2, 1) if dim % count == 0)
        kwargs["num_heads"] = heads
    read = {"depth": (depth, default_depth), "dim": (dim, default_dim), "patch_size": (patch, default_patch)}
    kwargs |= {key: value for key, (value, default) in read.items() if value != default}
    return f"spiking:{name}", kwargs


ORIGINAL = _Layout(re.compile(r"block\.0\.attn\.q_(linear|conv)\.weight"), _renamed, "after")
"""Names of the authors' code."""
SPIKINGJELLY = _Layout(re.compile(re.escape(_OURS)), dict, "before")
"""The catalogue's names, which are spikingjelly's."""
