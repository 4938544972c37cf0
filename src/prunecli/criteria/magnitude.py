"""Norms of a channel's weights, after Li et al. (Pruning Filters for Efficient ConvNets, ICLR 2017).

The paper sums over the filters that write a channel. Here the columns that read it count too: a channel matters just
as much through what its readers make of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, matrices_of, member_tensor, member_values, sum_by_unit
from prunecli.surgery.groups import ChannelGroup, Member

NO_WEIGHTS = "no weights to rank it by"


def l1(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Sum of |w| over all filters that write a channel and all columns that read it."""
    return {group.name: _sum_of_norms(model, group, 1) for group in groups}


def l2(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Sum of the Euclidean norms of the filters that write a channel and of the columns that read it."""
    return {group.name: _sum_of_norms(model, group, 2) for group in groups}


def group_norm(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Euclidean norm over every parameter a channel occupies, biases and scales included, taken jointly.

    Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, without its sparse training.
    """
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        squares = [
            sum_by_unit(member_values(model, member).square().sum(dim=1), member)
            for member in group.members
            if isinstance(member_tensor(model, member), nn.Parameter)
        ]
        scores[group.name] = torch.stack(squares).sum(dim=0).sqrt() if squares else NO_WEIGHTS
    return scores


def _sum_of_norms(model: nn.Module, group: ChannelGroup, power: int) -> Tensor | str:
    norms = [
        sum_by_unit(_powers(model, member, power), member).pow(1 / power)
        for member in matrices_of(model, group, "producer", "consumer")
    ]
    return torch.stack(norms).sum(dim=0) if norms else NO_WEIGHTS


def _powers(model: nn.Module, member: Member, power: int) -> Tensor:
    """Sums of |w| ** power along a member's dimension, in float64 without a copy of the weights in it."""
    tensor = member_tensor(model, member).detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    others = [dim for dim in range(tensor.dim()) if dim != member.dim]
    if power == 1:
        return tensor.abs().sum(dim=others, dtype=torch.float64).cpu()
    norms: Tensor = torch.linalg.vector_norm(tensor, power, dim=others, dtype=torch.float64)
    return norms.pow(power).cpu()
