"""A criterion: how much the weights of a channel vary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, matrices_of, member_values, sum_by_unit
from prunecli.surgery.groups import ChannelGroup


def spread(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Standard deviation of each channel's filter, averaged over the layers that write the channel."""
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        deviations = [
            sum_by_unit(member_values(model, member).std(dim=1), member)
            for member in matrices_of(model, group, "producer")
        ]
        scores[group.name] = torch.stack(deviations).mean(dim=0) if deviations else "no layer writes its channels"
    return scores
