"""Merging alike tokens (Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_pairs(x: Tensor, sizes: Tensor, metric: Tensor, pairs: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merges the most alike pairs of patch tokens, one token from the even and one from the odd places in each.

    Args:
        x: Tokens, shape (N, L, C).
        sizes: How many patches each stands for, shape (N, L).
        metric: What likeness is measured on, shape (N, L, D): the mean of the heads' keys.
        pairs: How many; at most half of the patch tokens.
        prefix: Tokens before the patches, which are left alone.

    Returns:
        Tokens (N, L - pairs, C), weighted means of what was merged, and their sizes.
    """
    pairs = min(pairs, (x.shape[1] - prefix) // 2)
    if pairs <= 0:
        return x, sizes
    unit = F.normalize(metric[:, prefix:], dim=-1)
    even, odd = unit[:, ::2], unit[:, 1::2]
    likeness, partner = (even @ odd.transpose(1, 2)).max(dim=2)
    order = likeness.argsort(dim=1, descending=True)
    going, staying = order[:, :pairs], order[:, pairs:].sort(dim=1).values
    target = partner.gather(1, going)
    weighted = x * sizes.unsqueeze(-1)
    both = torch.cat([weighted, sizes.unsqueeze(-1)], dim=2)  # summed up together
    patches = both[:, prefix:]
    evens, odds = patches[:, ::2], patches[:, 1::2]
    wide = patches.shape[2]
    moved = evens.gather(1, going.unsqueeze(-1).expand(-1, -1, wide))
    odds = odds.scatter_add(1, target.unsqueeze(-1).expand(-1, -1, wide), moved)
    kept = evens.gather(1, staying.unsqueeze(-1).expand(-1, -1, wide))
    merged = torch.cat([both[:, :prefix], kept, odds], dim=1)
    new_sizes = merged[:, :, -1]
    return merged[:, :, :-1] / new_sizes.unsqueeze(-1), new_sizes
