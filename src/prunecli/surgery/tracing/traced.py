"""What a trace is: groups that can shrink, layers that cannot, and what was learned by trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from prunecli.inputs import Inputs
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.labels import Followed

Position: TypeAlias = tuple[str, int, int]
"""A state dict name, a dimension and an index along it; identifies the channel there."""


def position_of(group: ChannelGroup) -> Position:
    """Where a group's first channel is, in its first member."""
    member = group.members[0]
    return member.name, member.dim, int(member.index[0, 0])


@dataclass(frozen=True)
class Assumptions:
    """Answers to questions that operators leave open.

    Attributes:
        frozen: Why the channel at a position cannot be removed.
        constant: Groups with a temperature that is a constant in the code and stays.
        preferred: Of several ways to cut a dimension, those that an earlier trace took: (tensor, dimension, axis from
            the left). Without it, a trace of an already smaller network might decide otherwise.
    """

    frozen: Mapping[Position, str] = field(default_factory=dict)
    constant: frozenset[Position] = frozenset()
    preferred: frozenset[Position] = frozenset()

    def after_removal(self) -> Assumptions:
        """The assumptions that still hold after positions have changed."""
        return replace(self, frozen={}, constant=frozenset())


@dataclass(frozen=True)
class Frozen:
    """A layer with an output width that cannot change, and the reason."""

    name: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Trace:
    """What `trace` found: groups that can shrink and layers that cannot.

    Attributes:
        groups: What can shrink.
        frozen: What cannot, with the reason.
        followed: Labels of all tensors and operators, in `dtype`.
        dtype: float64, or float32 for a model that does not run in float64.
        assumptions: What was learned by trial.
        part: For a trace of one module alone: that module, its own trace and its inputs.
        settings: Of the tracer, by name, where whoever called it has noted them.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...] = field(default=())
    followed: Followed | None = field(default=None, repr=False, compare=False)
    dtype: torch.dtype = torch.float64
    assumptions: Assumptions | None = field(default=None, repr=False, compare=False)
    part: Part | None = field(default=None, repr=False, compare=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def group(self, name: str) -> ChannelGroup:
        """Returns the group called `name`.

        Raises:
            KeyError: There is no such group.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


@dataclass(frozen=True)
class Part:
    """One module of a network, traced alone.

    Attributes:
        module: Its dotted name; names in the network's trace begin with it.
        trace: The trace of the module itself.
        inputs: Its inputs in the network.
    """

    module: str
    trace: Trace
    inputs: Inputs

    def own(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """A mapping by the network's group names as one by the module's group names."""
        return {name.removeprefix(f"{self.module}."): value for name, value in names.items()}
