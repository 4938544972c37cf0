"""Norms of a channel's filters (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import member_values, sum_by_unit, weights_of
from prunecli.surgery.groups import ChannelGroup


def l1(model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator) -> dict[str, Tensor | str]:
    """Sum of |w| over the filters that write a channel."""
    return {group.name: _filter_sums(model, group, 1) for group in groups}


def l2(model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator) -> dict[str, Tensor | str]:
    """Euclidean norm of all filters that write a channel."""
    return {group.name: _filter_sums(model, group, 2).sqrt() for group in groups}


def _filter_sums(model: nn.Module, group: ChannelGroup, power: int) -> Tensor:
    sums = [
        sum_by_unit(member_values(model, member).abs().pow(power).sum(dim=1), member)
        for member in weights_of(group, "producer")
    ]
    return torch.stack(sums).sum(dim=0)
