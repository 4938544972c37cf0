"""Norms of a channel's weights, after Li et al. (Pruning Filters for Efficient ConvNets, ICLR 2017).

The paper sums over the filters that write a channel. Here the columns that read it count too: a channel matters as much
through what is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import member_values, sum_by_unit, weights_of
from prunecli.surgery.groups import ChannelGroup


def l1(model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator) -> dict[str, Tensor | str]:
    """Sum of |w| over all filters that write a channel and all columns that read it."""
    return {group.name: _sum_of_norms(model, group, 1) for group in groups}


def l2(model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator) -> dict[str, Tensor | str]:
    """Sum of the Euclidean norms of the filters that write a channel and of the columns that read it."""
    return {group.name: _sum_of_norms(model, group, 2) for group in groups}


def _sum_of_norms(model: nn.Module, group: ChannelGroup, power: int) -> Tensor:
    norms = [
        sum_by_unit(member_values(model, member).abs().pow(power).sum(dim=1), member).pow(1 / power)
        for member in weights_of(group, "producer", "consumer")
    ]
    return torch.stack(norms).sum(dim=0)
