"""A seeded random order: the baseline every other criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration
from prunecli.surgery.groups import ChannelGroup


def random(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Draws scores from U(0, 1)."""
    return {
        group.name: torch.rand(group.units, generator=calibration.generator, dtype=torch.float64) for group in groups
    }
