"""Batch normalisation scale (Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunecli.criteria.base import Calibration, member_values, sum_by_unit
from prunecli.surgery.groups import ChannelGroup


def bn_scale(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Sum of |gamma| over the batch normalisations a channel passes through."""
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        gammas = [
            sum_by_unit(member_values(model, member).abs().sum(dim=1), member)
            for member in group.members
            if member.role == "carrier"
            and member.tensor == "weight"
            and isinstance(model.get_submodule(member.module), _BatchNorm)
        ]
        scores[group.name] = torch.stack(gammas).sum(dim=0) if gammas else "no batch normalisation to rank it by"
    return scores
