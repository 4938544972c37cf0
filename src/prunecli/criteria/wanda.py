"""Weights times activations (Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.criteria.base import Calibration, OwnShare, member_tensor, sum_by_unit
from prunecli.criteria.readers import UNSEEN, exact, tappable, watch_readers
from prunecli.ranks import summed_by_name
from prunecli.surgery.groups import ChannelGroup, Member


def wanda(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Sum of |w| * ||x|| over the columns that read a channel, with ||x|| the root mean square of what they read.

    The paper ranks single weights of a row; a channel's score adds its weights up over rows and readers.
    """
    squares: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}

    def see(name: str, rows: Tensor) -> None:
        total = exact(rows).square().sum(dim=0).cpu()
        squares[name] = squares[name] + total if name in squares else total
        counts[name] = counts.get(name, 0) + torch.tensor(len(rows))

    watch_readers(model, groups, OwnShare(calibration), see)
    squares, counts = summed_by_name(squares), summed_by_name(counts)
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        by_reader = [
            _weighted(model, member, (squares[member.name] / counts[member.name]).sqrt())
            for member in tappable(model, group)
            if member.name in squares
        ]
        scores[group.name] = torch.stack(by_reader).sum(dim=0) if by_reader else UNSEEN
    return scores


def _weighted(model: nn.Module, member: Member, norms: Tensor) -> Tensor:
    """Sums |w| * norm by unit; `norms` has shape (input channels,), block by block for a grouped convolution."""
    weight = member_tensor(model, member).detach().cpu().double().abs()
    module = model.get_submodule(member.module)
    if member.dim == 0:  # a transposed convolution's weight begins with its input channels
        return sum_by_unit(weight.flatten(1).sum(dim=1) * norms, member)
    blocks = module.groups if isinstance(module, _ConvNd) else 1
    columns = weight.flatten(2).sum(dim=2) if weight.dim() > 2 else weight
    by_block = columns.reshape(blocks, -1, columns.shape[1]).sum(dim=1)
    return sum_by_unit((by_block * norms.reshape(blocks, -1)).sum(dim=0), member)
