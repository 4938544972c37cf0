"""A seeded random order: the baseline every other criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.surgery.groups import ChannelGroup


def random(model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator) -> dict[str, Tensor | str]:
    """Draws scores from U(0, 1)."""
    return {group.name: torch.rand(group.units, generator=generator, dtype=torch.float64) for group in groups}
