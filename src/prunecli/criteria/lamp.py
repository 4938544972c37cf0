"""Layer-adaptive magnitudes (Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration
from prunecli.criteria.magnitude import group_norm
from prunecli.surgery.groups import ChannelGroup


def lamp(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """A unit's squared norm divided by the sum of the squared norms of the group's units that are not smaller.

    The paper scores single weights; here a unit's weight is its norm over the whole group. The largest unit of every
    group scores 1, so a global ranking never removes a whole layer, and scores are compared without normalisation.
    """
    return {
        name: value if isinstance(value, str) else lamp_scores(value)
        for name, value in group_norm(model, groups, calibration).items()
    }


def lamp_scores(norms: Tensor) -> Tensor:
    """LAMP scores of norms of shape (units,); of equal norms the later counts as the larger, as in the paper."""
    ascending = torch.sort(norms.square(), stable=True)
    remaining = ascending.values.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(norms)
    scores[ascending.indices] = ascending.values / remaining.clamp_min(torch.finfo(norms.dtype).tiny)
    return scores
