"""What a criterion is given and gives back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from prunecli.surgery.groups import ChannelGroup, Member, Role


class Criterion(Protocol):
    """Scores every unit of every group; units with low scores are removed first."""

    def __call__(
        self, model: nn.Module, groups: Sequence[ChannelGroup], generator: torch.Generator
    ) -> dict[str, Tensor | str]:
        """Returns, by group name, scores of shape (units,), or the reason why the group cannot be ranked."""
        ...


def sum_by_unit(per_position: Tensor, member: Member) -> Tensor:
    """Adds values along a member's dimension up by unit: shape (size of that dimension,) to (units,)."""
    return per_position[member.index].sum(dim=1)


def member_values(model: nn.Module, member: Member) -> Tensor:
    """A member's tensor in float64 with its channel dimension first, shape (size of that dimension, rest)."""
    tensor: Tensor = getattr(model.get_submodule(member.module), member.tensor)
    return tensor.detach().double().cpu().movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1)


def weights_of(group: ChannelGroup, *roles: Role) -> list[Member]:
    """The group's weight tensors with one of `roles`; biases and statistics are left out."""
    return [member for member in group.members if member.role in roles and member.tensor == "weight"]
