"""How far a channel moves what reads it, after An et al. (Fluctuation-based Adaptive Structured Pruning, AAAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.activation import reader_moments
from prunecli.criteria.base import Calibration
from prunecli.criteria.readers import UNSEEN, by_unit, column_norms, tappable
from prunecli.surgery.groups import ChannelGroup

_SILENT = "the layers that read it give zero on the calibration data"


def flap(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Var(x_j) ||W_j||^2, summed over readers, each relative to sum_j E[x_j^2] ||W_j||^2 of its whole input.

    The variance is what is lost of x_j when its mean goes into the bias. The score does not change when a channel is
    scaled and its readers divided. What other channels could make up for is not looked at, which makes it cheap; `obs`
    looks at that. (The paper divides by no output, and standardises scores within each layer instead.)
    """
    moments = reader_moments(model, groups, calibration)
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        members = [member for member in tappable(model, group) if member.name in moments]
        by_reader = []
        for member in members:
            seen, norms = moments[member.name], column_norms(model, member).square()
            variance = seen.std.square()
            whole = float(((variance + seen.mean.square()) * norms).sum())
            if whole > 0:
                by_reader.append(by_unit(model, member, variance * norms) / whole)
        scores[group.name] = torch.stack(by_reader).sum(dim=0) if by_reader else _SILENT if members else UNSEEN
    return scores
