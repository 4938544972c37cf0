"""torch-pruning's uniform pruning, with the help that its own examples give it. Imported by the other scripts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import torch
import torch_pruning as tp
from torch import Tensor, nn


def attentions(model: nn.Module) -> Iterator[tuple[nn.Module, str, list[nn.Linear], int]]:
    """Attention modules with the attribute that counts heads, the projections that make heads, and their copies."""
    for module in model.modules():
        if isinstance(getattr(module, "num_heads", None), int) and isinstance(getattr(module, "qkv", None), nn.Linear):
            yield module, "num_heads", [module.qkv], 3
        elif isinstance(getattr(module, "num_attention_heads", None), int) and hasattr(module, "q_proj"):
            yield module, "num_attention_heads", [module.q_proj, module.k_proj, module.v_proj], 1


def classifiers(model: nn.Module, classes: int) -> list[nn.Module]:
    """Layers with as many outputs as there are classes."""
    return [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == classes
        and isinstance(module, (nn.Linear, nn.Conv2d))
    ]


def prune_uniform(
    model: nn.Module,
    example: Tensor,
    ratio: float,
    classes: int,
    *,
    round_to: int | None = None,
    keep: tuple[nn.Module, ...] = (),
) -> nn.Module:
    """A pruned copy: MagnitudePruner, p = 1, the same share of every width, the classifier left alone.

    Head counts are given, and head widths set afterwards, where attention is built as in timm or transformers; the
    softmax temperature stays, as for masked channels.

    Args:
        model: Not changed.
        example: Input the model accepts.
        ratio: Share to remove.
        classes: How many there are, to find the classifier by.
        round_to: Widths become multiples of this.
        keep: Further layers of `model` to leave alone.
    """
    kept = {name for name, module in model.named_modules() if any(module is one for one in keep)}
    pruned = copy.deepcopy(model).eval()
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)  # frozen ones are invisible to torch-pruning
    heads = {layer: getattr(m, count) for m, count, layers, _ in attentions(pruned) for layer in layers}
    ignored = classifiers(pruned, classes) + [module for name, module in pruned.named_modules() if name in kept]
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            pruned,
            example,
            tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=ignored,
            num_heads=heads,
            round_to=round_to,
        )
        pruner.step()
    for module, count, layers, copies in attentions(pruned):
        number = pruner.num_heads.get(layers[0], getattr(module, count))
        width = layers[0].out_features // (copies * number)
        for name, value in ((count, number), ("head_dim", width), ("attn_dim", width * number)):
            if hasattr(module, name):
                setattr(module, name, value)
    return pruned
