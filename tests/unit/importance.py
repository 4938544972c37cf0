"""What the tests of importance share."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.criteria.base import default_loss
from prunecli.surgery.groups import ChannelGroup


def images(batches: int = 3, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 3, 16, 16, generator=generator), torch.randint(0, 10, (size,), generator=generator))
        for _ in range(batches)
    ]


class NoBias(nn.Module):
    """Two readers of one layer, one with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 7), nn.Linear(7, 4), nn.Linear(7, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x.mean((2, 3))))
        return self.c(x) + F.pad(self.b(x), (0, 6))


def gates_one_by_one(model: nn.Module, groups: list[ChannelGroup], data: Any) -> dict[str, Tensor]:
    """w * dL/dw over the weights that read each unit, one sample after the other, in a loop over units."""
    rows: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    for inputs, labels in data:
        for place in range(len(inputs)):
            model.zero_grad()
            default_loss(model(inputs[place : place + 1]), labels[place : place + 1]).backward()
            for group in groups:
                gate = torch.zeros(group.units, dtype=torch.float64)
                for member, unit in itertools.product(group.members, range(group.units)):
                    if member.role == "consumer":
                        weight = model.get_parameter(member.name)
                        for column in member.index[unit]:
                            own = weight.select(member.dim, int(column)) * weight.grad.select(member.dim, int(column))  # type: ignore[union-attr]
                            gate[unit] += float(own.sum())
                rows[group.name].append(gate)
    model.zero_grad()
    return {name: torch.stack(values) for name, values in rows.items()}


FEW = {"min_probes": 4, "max_probes": 6}
