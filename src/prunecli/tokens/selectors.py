"""Which tokens of an image stay: scores at one block, from that block's own queries and keys.

Every choice is made for each image alone, of a number of tokens that is the same for all, so shapes are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.tokens.attention import attention_weights, gather_places, gather_tokens, projected


@dataclass(frozen=True)
class Choice:
    """How many tokens stay at a block, and by what.

    Attributes:
        selector: "anchor": attention from, and distance to, the tokens that matter most; "cls": attention of the class
            token; "diversity": distance alone; "random": the same random places for every image; "evit": as "cls", and
            the others fused into one token (Liang et al., 2022).
        kept: Patch tokens that stay, without the fused one.
        anchors: How many of them are anchors.
        alpha: Weight of attention against distance.
        to_anchors: Attention that tokens pay to anchors counts, instead of what they get from them.
        seed: Of "random".
    """

    selector: str
    kept: int
    anchors: int = 0
    alpha: float = 0.5
    to_anchors: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    """What a block's attention reads of one batch.

    Attributes:
        attention: The attention module.
        x: Tokens as they come into the block, shape (N, L, C).
        normed: The same as the attention reads them.
        prefix: Tokens before the patches.
        by_class_token: Whether the first token's attention says what matters.
        rope: Rotary embeddings of the patch tokens, shape (P, D) or (N, 1, P, D).
        bias: Added to attention scores, shape (N or 1, heads, L, L).
    """

    attention: nn.Module
    x: Tensor
    normed: Tensor
    prefix: int
    by_class_token: bool
    rope: Tensor | None = None
    bias: Tensor | None = None

    def keys(self) -> Tensor:
        """Keys of all tokens, shape (N, heads, L, head_dim)."""
        return self._of_all("k")

    def queries(self) -> Tensor:
        """Queries of all tokens."""
        return self._of_all("q")

    def queries_at(self, places: Tensor) -> Tensor:
        """Queries of patch tokens, (N, K) places among them."""
        rope = None if self.rope is None else gather_places(self.rope, places)
        return projected(self.attention, gather_tokens(self.normed, places + self.prefix), "q", rope)

    def first_query(self) -> Tensor:
        """The class token's query."""
        return projected(self.attention, self.normed[:, :1], "q")

    def _of_all(self, part: str) -> Tensor:
        if self.rope is None:
            return projected(self.attention, self.normed, part)  # type: ignore[arg-type]
        before = projected(self.attention, self.normed[:, : self.prefix], part)  # type: ignore[arg-type]
        patches = projected(self.attention, self.normed[:, self.prefix :], part, self.rope)  # type: ignore[arg-type]
        return torch.cat([before, patches], dim=2)


def choose(choice: Choice, seen: Seen) -> tuple[Tensor, Tensor | None]:
    """Chooses patch tokens.

    Returns:
        Places among the patch tokens in their order, shape (N, kept), and importance of all patch tokens (N, P) where
        the selector needs it afterwards.
    """
    samples, length, _ = seen.x.shape
    if choice.selector == "random":
        generator = torch.Generator().manual_seed(choice.seed)
        places = torch.randperm(length - seen.prefix, generator=generator)[: choice.kept].sort().values
        return places.to(seen.x.device).expand(samples, -1), None
    keys = seen.keys()
    importance = coarse_importance(seen, keys)[:, seen.prefix :]
    if choice.selector in ("cls", "evit"):
        return importance.topk(choice.kept, dim=1).indices.sort(dim=1).values, importance
    return _by_anchors(choice, seen, keys, importance), None


def coarse_importance(seen: Seen, keys: Tensor) -> Tensor:
    """Attention that every token gets from the class token, else from all tokens on average: (N, L)."""
    if seen.by_class_token:
        bias = None if seen.bias is None else seen.bias[:, :, :1]
        return attention_weights(seen.first_query(), keys, bias).squeeze(1)
    return attention_weights(seen.queries(), keys, seen.bias).mean(dim=1)


def _by_anchors(choice: Choice, seen: Seen, keys: Tensor, importance: Tensor) -> Tensor:
    """Anchors, and of the others those that anchors attend to and that are unlike them."""
    anchors = importance.topk(choice.anchors, dim=1).indices
    patches = seen.x[:, seen.prefix :]
    rest = choice.kept - choice.anchors
    if rest == 0:
        return anchors.sort(dim=1).values
    unit = F.normalize(patches, dim=-1)
    distance = 1 - (unit @ gather_tokens(unit, anchors).transpose(1, 2)).amax(dim=2)
    taken = torch.zeros_like(distance).scatter(1, anchors, 1.0) > 0
    score = _spread(distance, taken)
    if choice.selector == "anchor":
        attended = _attention_to(choice, seen, keys, anchors)
        score = choice.alpha * _spread(attended, taken) + (1 - choice.alpha) * score
    others = score.masked_fill(taken, -1.0).topk(rest, dim=1).indices
    return torch.cat([anchors, others], dim=1).sort(dim=1).values


def _attention_to(choice: Choice, seen: Seen, keys: Tensor, anchors: Tensor) -> Tensor:
    """Mean attention between every patch token and the anchors, shape (N, P)."""
    if choice.to_anchors:
        paid = attention_weights(seen.queries(), keys, seen.bias)[:, seen.prefix :, seen.prefix :]
        return paid.gather(2, anchors.unsqueeze(1).expand(-1, paid.shape[1], -1)).mean(dim=2)
    bias = None
    if seen.bias is not None:
        rows = (anchors + seen.prefix)[:, None, :, None].expand(-1, seen.bias.shape[1], -1, seen.bias.shape[-1])
        bias = seen.bias.expand(anchors.shape[0], -1, -1, -1).gather(2, rows)
    return attention_weights(seen.queries_at(anchors), keys, bias).mean(dim=1)[:, seen.prefix :]


def _spread(values: Tensor, taken: Tensor) -> Tensor:
    """Scaled to 0..1 over each image's tokens that are not taken."""
    low = values.masked_fill(taken, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(taken, -torch.inf).amax(dim=1, keepdim=True)
    return (values - low) / (high - low).clamp_min(1e-12)
