"""Merging similar tokens (Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_pairs(x: Tensor, sizes: Tensor, metric: Tensor, pairs: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merges the most similar pairs of patch tokens, each of one even and one odd index.

    Args:
        x: Tokens, shape (N, L, C).
        sizes: Number of patches that each token stands for, shape (N, L).
        metric: Features whose cosine similarity counts, shape (N, L, D): keys, averaged over heads.
        pairs: Number of pairs; at most half of the patch tokens.
        prefix: Number of tokens before those of patches, which are not merged.

    Returns:
        Tokens (N, L - pairs, C), where merged ones are means weighted by size, and their sizes (N, L - pairs).
    """
    pairs = min(pairs, (x.shape[1] - prefix) // 2)
    if pairs <= 0:
        return x, sizes
    unit = F.normalize(metric[:, prefix:], dim=-1)
    even, odd = unit[:, ::2], unit[:, 1::2]
    similarity, partner = (even @ odd.transpose(1, 2)).max(dim=2)
    order = similarity.argsort(dim=1, descending=True)
    going, staying = order[:, :pairs], order[:, pairs:].sort(dim=1).values
    target = partner.gather(1, going)
    weighted = x * sizes.unsqueeze(-1)
    both = torch.cat([weighted, sizes.unsqueeze(-1)], dim=2)  # summed together
    patches = both[:, prefix:]
    evens, odds = patches[:, ::2], patches[:, 1::2]
    width = patches.shape[2]
    moved = evens.gather(1, going.unsqueeze(-1).expand(-1, -1, width))
    odds = odds.scatter_add(1, target.unsqueeze(-1).expand(-1, -1, width), moved)
    kept = evens.gather(1, staying.unsqueeze(-1).expand(-1, -1, width))
    merged = torch.cat([both[:, :prefix], kept, odds], dim=1)
    new_sizes = merged[:, :, -1]
    return merged[:, :, :-1] / new_sizes.unsqueeze(-1), new_sizes
