"""Weights of Spikformer under the names of its authors' code, and which Spikformer a state dict belongs to.

The authors' code (on spikingjelly's `clock_driven`) comes in two forms: for CIFAR with linear layers (`q_linear`,
`fc1_linear`), for ImageNet with convolutions (`q_conv`, `fc1_conv`). Both have queries, keys and values in layers of
their own and biases before normalisations, and pool spikes. Their blocks hold layer normalisations that nothing calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunecli.errors import ModelError

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
_THEIRS = re.compile(r"block\.0\.attn\.q_(linear|conv)\.weight")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class SpikformerWeights:
    """Spikformer weights by spikingjelly's names, and what they say about the network.

    Attributes:
        tensors: The state dict.
        ref: The architecture they are nearest to.
        kwargs: Arguments to build it with.
        note: What they do not say and was assumed.
    """

    tensors: dict[str, Tensor]
    ref: str
    kwargs: dict[str, Any]
    note: str


def spikformer_weights(tensors: Mapping[str, Tensor], path: Path) -> SpikformerWeights | None:
    """Recognises Spikformer weights, renames them, and reads width, depth and the like from their shapes.

    Args:
        tensors: A state dict.
        path: Its file, for messages.

    Returns:
        None for weights of anything else.

    Raises:
        ModelError: They have Spikformer's names and are incomplete.
    """
    original = any(_THEIRS.fullmatch(name) for name in tensors)
    if not original and _OURS not in tensors:
        return None
    try:
        renamed = _renamed(tensors) if original else dict(tensors)
        return _described(
            renamed, "after" if original else "before", convolutional="block.0.attn.q_conv.weight" in tensors
        )
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path}: has Spikformer's names but not all of its tensors ({error}); get it again"
        ) from error


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    left = {name: tensor for name, tensor in tensors.items() if not _UNUSED.fullmatch(name)}
    made: dict[str, Tensor] = {name: left.pop(name) for name in ("head.weight", "head.bias")}
    for (layer, norm), ours in _STEM.items():
        source = (f"patch_embed.{layer}", f"patch_embed.{norm}")
        prefix = f"patch_embed.{ours}.conv_bn.block"
        made |= _pair(left, [source], f"{prefix}.0", f"{prefix}.1", dims=4)
    kind = "linear" if "block.0.attn.q_linear.weight" in left else "conv"
    blocks = sorted({int(name.split(".")[1]) for name in left if name.startswith("block.")})
    for block in blocks:
        here = f"block.{block}."
        layers = [(f"{here}{part}{kind}", f"{here}{part}bn") for part in _PARTS]
        made |= _pair(left, layers, f"blocks.{block}.attn.qkv_conv_bn.0", f"blocks.{block}.attn.qkv_conv_bn.1", dims=3)
        for theirs, (layer, norm) in _BLOCK.items():
            made |= _pair(
                left,
                [(f"{here}{theirs}{kind}", f"{here}{theirs}bn")],
                f"blocks.{block}.{layer}",
                f"blocks.{block}.{norm}",
                dims=3,
            )
    if left:
        raise ValueError(f"unknown tensor {min(left)!r}")
    return made


def _pair(
    left: dict[str, Tensor], sources: list[tuple[str, str]], layer: str, norm: str, *, dims: int
) -> dict[str, Tensor]:
    """A layer and the normalisation behind it, several of them put together row by row.

    A bias before a normalisation shifts its running mean and nothing else, so that is where it goes.
    """
    weights, norms = [], []
    for theirs, theirs_norm in sources:
        weight = left.pop(f"{theirs}.weight")
        while weight.dim() > dims:
            weight = weight.squeeze(-1)
        while weight.dim() < dims:
            weight = weight.unsqueeze(-1)
        weights.append(weight)
        found = {name: left.pop(f"{theirs_norm}.{name}", torch.tensor(0)) for name in _NORM}
        bias = left.pop(f"{theirs}.bias", None)
        if bias is not None:
            found["running_mean"] = found["running_mean"] - bias
        norms.append(found)
    made = {f"{layer}.weight": torch.cat(weights)}
    for name in _NORM:
        values = [found[name] for found in norms]
        made[f"{norm}.{name}"] = values[0] if values[0].dim() == 0 else torch.cat(values)
    return made


def _described(tensors: dict[str, Tensor], pool: str, *, convolutional: bool) -> SpikformerWeights:
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
    alike = [name for name, (_, wide, _, size) in SPIKFORMERS.items() if wide == dim and size == patch]
    exact = [name for name in alike if SPIKFORMERS[name][0] == depth]
    name = (exact or alike or ["spikformer-4-384"])[0]
    known_depth, known_dim, heads, known_patch = SPIKFORMERS[name]
    if not alike:
        heads = next(count for count in (8, 4, 2, 1) if dim % count == 0)
        kwargs["num_heads"] = heads
    wanted = {"depth": (depth, known_depth), "dim": (dim, known_dim), "patch_size": (patch, known_patch)}
    kwargs |= {key: value for key, (value, known) in wanted.items() if value != known}
    note = f"assumed {heads} heads, patches of {patch} pixels, T = 4 and LIF neurons with tau = 2: weights do not say"
    return SpikformerWeights(tensors, f"spiking:{name}", kwargs, f"{note}; see --model-kwargs")
