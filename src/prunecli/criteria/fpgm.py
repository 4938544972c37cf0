"""Geometric median (He et al., Filter Pruning via Geometric Median for Deep CNN Acceleration, CVPR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, matrices_of, member_values
from prunecli.criteria.magnitude import NO_WEIGHTS
from prunecli.surgery.groups import ChannelGroup


def fpgm(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Sum of the Euclidean distances of a unit's filters to those of all other units, over the layers that write it.

    A filter near the geometric median of its layer has the smallest sum: the others can stand in for it.
    """
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        sums = [
            _distances(member_values(model, member)[member.index].flatten(1))
            for member in matrices_of(model, group, "producer")
        ]
        scores[group.name] = torch.stack(sums).sum(dim=0) if sums else NO_WEIGHTS
    return scores


def _distances(filters: Tensor) -> Tensor:
    """Sum of distances of every row, shape (units, values), to all others."""
    # By matrix products: many times faster, and exact enough in float64. A row's distance to itself is rounding alone.
    distances = torch.cdist(filters, filters, compute_mode="use_mm_for_euclid_dist")
    return distances.fill_diagonal_(0).sum(dim=1)
