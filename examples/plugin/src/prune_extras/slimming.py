"""A trained method: Network Slimming (Liu et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune_extras.specs import SlimmingParams
from prunecli.engine.hooks import Batch
from prunecli.errors import MethodError
from prunecli.methods.trained import PruningHook, TrainedContext
from prunecli.report.table import Table
from prunecli.surgery.groups import ChannelGroup

_SMALL = 1e-2


class Slimming(PruningHook):
    """Adds an L1 penalty on batch normalisation scales, and removes the channels with the smallest ones at the end.

    Args:
        model: The network that is trained.
        params: Penalty, and how much to remove.
        context: The groups that may shrink.

    Raises:
        MethodError: No batch normalisation follows a layer that may shrink.
    """

    name = "slimming"

    def __init__(self, model: nn.Module, params: SlimmingParams, context: TrainedContext) -> None:
        self._params = params
        scales = {group.name: _scales(model, group) for group in context.selection.groups}
        self._scales = {name: members for name, members in scales.items() if members}
        self._units = {group.name: group.units for group in context.selection.groups}
        if not self._scales:
            raise MethodError("slimming needs batch normalisations behind layers that may shrink; use another method")

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        """Adds the penalty."""
        scales = {id(scale): scale for members in self._scales.values() for scale, _ in members}
        return loss + self._params.penalty * torch.stack([scale.abs().sum() for scale in scales.values()]).sum()

    def tables(self) -> Sequence[Table]:
        """How many scales are small, by layer."""
        rows = []
        for name in self._scales:
            size = self._importance(name)
            rows.append((name, str(len(size)), str(int((size < _SMALL).sum())), f"{float(size.mean()):.4f}"))
        return [Table(("layer", "channels", "small", "mean scale"), rows, title="scales", numeric=(1, 2, 3))]

    def keep(self) -> Mapping[str, Tensor]:
        """The channels with the largest scales."""
        return {
            name: self._importance(name)
            .topk(max(1, round(self._units[name] * (1 - self._params.remove))))
            .indices.sort()
            .values
            for name in self._scales
        }

    def _importance(self, name: str) -> Tensor:
        sizes = [scale.detach().abs()[index].mean(dim=1).cpu() for scale, index in self._scales[name]]
        return torch.stack(sizes).mean(dim=0)


def _scales(model: nn.Module, group: ChannelGroup) -> list[tuple[Tensor, Any]]:
    """Batch normalisation scales of a group, with the positions of each unit."""
    return [
        (module.weight, member.index)
        for member in group.members
        if member.tensor == "weight" and isinstance(module := model.get_submodule(member.module), _BatchNorm)
    ]
