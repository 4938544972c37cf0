"""Which tokens of an image stay: scores at one block, from that block's own queries and keys.

Tokens are chosen for each image separately, but equally many for all, so shapes are static.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.errors import MethodError
from prunecli.tokens.attention import attention_weights, gather_rope, gather_tokens, projected


@dataclass(frozen=True)
class Choice:
    """How many tokens stay at a block, and how they are chosen.

    Attributes:
        selector: "anchor": attention from the most important tokens (anchors) and distance to them; "cls": attention of
            the class token; "diversity": distance alone; "random": the same random patches for every image; "evit": as
            "cls", with the others fused into one token (Liang et al., 2022).
        kept: Number of patch tokens that stay, without the fused one.
        anchors: How many of them are anchors.
        alpha: Weight of attention; distance has 1 - alpha.
        to_anchors: Whether to use the attention that tokens pay to anchors, not what they get from anchors.
        seed: Seed of "random".
    """

    selector: str
    kept: int
    anchors: int = 0
    alpha: float = 0.5
    to_anchors: bool = False
    seed: int = 0


@dataclass(frozen=True)
class AttentionInputs:
    """What a block's attention reads for one batch.

    Attributes:
        attention: The attention module.
        x: Input tokens of the block, shape (N, L, C).
        normed: The same tokens after normalisation, as the attention reads them.
        prefix: Number of tokens before those of patches.
        by_class_token: Whether the attention of the first token measures importance.
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
        """Queries of all tokens, shape (N, heads, L, head_dim)."""
        return self._of_all("q")

    def queries_at(self, patches: Tensor) -> Tensor:
        """Queries (N, heads, K, head_dim) of the patch tokens at indices (N, K)."""
        rope = None if self.rope is None else gather_rope(self.rope, patches)
        return projected(self.attention, gather_tokens(self.normed, patches + self.prefix), "q", rope)

    def first_query(self) -> Tensor:
        """Query of the class token, shape (N, heads, 1, head_dim)."""
        return projected(self.attention, self.normed[:, :1], "q")

    def _of_all(self, part: str) -> Tensor:
        if self.rope is None:
            return projected(self.attention, self.normed, part)  # type: ignore[arg-type]
        before = projected(self.attention, self.normed[:, : self.prefix], part)  # type: ignore[arg-type]
        patches = projected(self.attention, self.normed[:, self.prefix :], part, self.rope)  # type: ignore[arg-type]
        return torch.cat([before, patches], dim=2)


def choose(choice: Choice, inputs: AttentionInputs) -> tuple[Tensor, Tensor | None]:
    """Chooses patch tokens.

    Returns:
        Indices of the patch tokens that stay, ascending, shape (N, kept); and the importance of all patch tokens, shape
        (N, P), if the selector computes it.

    Raises:
        MethodError: There are fewer patch tokens than are to stay.
    """
    samples, length, _ = inputs.x.shape
    if choice.kept > length - inputs.prefix:
        raise MethodError(
            f"{choice.kept} patch tokens are to stay and there are {length - inputs.prefix}: the image is smaller than "
            "those that tokens were pruned for; give the same --image-size, or prune tokens again for this size"
        )
    if choice.selector == "random":
        generator = torch.Generator().manual_seed(choice.seed)
        patches = torch.randperm(length - inputs.prefix, generator=generator)[: choice.kept].sort().values
        return patches.to(inputs.x.device).expand(samples, -1), None
    keys = inputs.keys()
    importance = _importance(inputs, keys)[:, inputs.prefix :]
    if choice.selector in ("cls", "evit"):
        return importance.topk(choice.kept, dim=1).indices.sort(dim=1).values, importance
    return _by_anchors(choice, inputs, keys, importance), None


def _importance(inputs: AttentionInputs, keys: Tensor) -> Tensor:
    """Attention that each token gets from the class token, or from all tokens on average: (N, L)."""
    if inputs.by_class_token:
        bias = None if inputs.bias is None else inputs.bias[:, :, :1]
        return attention_weights(inputs.first_query(), keys, bias).squeeze(1)
    return attention_weights(inputs.queries(), keys, inputs.bias).mean(dim=1)


def _by_anchors(choice: Choice, inputs: AttentionInputs, keys: Tensor, importance: Tensor) -> Tensor:
    """Anchors, and the other tokens that anchors attend to most and resemble least."""
    anchors = importance.topk(choice.anchors, dim=1).indices
    patches = inputs.x[:, inputs.prefix :]
    rest = choice.kept - choice.anchors
    if rest == 0:
        return anchors.sort(dim=1).values
    unit = F.normalize(patches, dim=-1)
    distance = 1 - (unit @ gather_tokens(unit, anchors).transpose(1, 2)).amax(dim=2)
    taken = torch.zeros_like(distance).scatter(1, anchors, 1.0) > 0
    score = _rescaled(distance, taken)
    if choice.selector == "anchor":
        attended = _attention_to(choice, inputs, keys, anchors)
        score = choice.alpha * _rescaled(attended, taken) + (1 - choice.alpha) * score
    others = score.masked_fill(taken, -1.0).topk(rest, dim=1).indices
    return torch.cat([anchors, others], dim=1).sort(dim=1).values


def _attention_to(choice: Choice, inputs: AttentionInputs, keys: Tensor, anchors: Tensor) -> Tensor:
    """Mean attention between every patch token and the anchors, shape (N, P)."""
    if choice.to_anchors:
        paid = attention_weights(inputs.queries(), keys, inputs.bias)[:, inputs.prefix :, inputs.prefix :]
        return paid.gather(2, anchors.unsqueeze(1).expand(-1, paid.shape[1], -1)).mean(dim=2)
    bias = None
    if inputs.bias is not None:
        rows = (anchors + inputs.prefix)[:, None, :, None].expand(-1, inputs.bias.shape[1], -1, inputs.bias.shape[-1])
        bias = inputs.bias.expand(anchors.shape[0], -1, -1, -1).gather(2, rows)
    return attention_weights(inputs.queries_at(anchors), keys, bias).mean(dim=1)[:, inputs.prefix :]


def _rescaled(values: Tensor, taken: Tensor) -> Tensor:
    """Values, scaled to 0..1 over the tokens of each image that are not taken."""
    low = values.masked_fill(taken, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(taken, -torch.inf).amax(dim=1, keepdim=True)
    return (values - low) / (high - low).clamp_min(1e-12)
