"""What is going to stay of a network: written down, and the same in all processes that work together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunecli.checkpoint.manifest import Edit
from prunecli.collective import agreed
from prunecli.surgery.groups import ChannelGroup, Keep


def edits_of(groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]) -> list[Edit]:
    """One entry for each group that loses units, given the kept units by group name."""
    return [
        Edit(
            group=group.name,
            width_before=group.channels,
            width_after=len(keep[group.name]) * group.channels_per_unit,
            keep_indices=keep[group.name].tolist(),
            layers=list(group.modules("producer")),
        )
        for group in groups
        if len(keep[group.name]) < group.units
    ]


def agreed_plan(keep: Keep) -> dict[str, Tensor]:
    """The kept units by group name, once all processes have been found to want the same.

    Raises:
        RanksDiffer: They do not; the message names the first layer that differs, and all processes raise it.
    """
    return agreed("the channels that are to stay", {name: units.cpu() for name, units in keep.items()})
