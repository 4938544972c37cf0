"""Which units are ablated, and what comes of it on all samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from prunecli.criteria.ablation import Unit
from prunecli.errors import RecipeError
from prunecli.surgery.groups import ChannelGroup


def draw_units(groups: Sequence[ChannelGroup], count: int, seed: int) -> tuple[Unit, ...]:
    """Draws units of all groups alike, without replacement, in random order.

    Raises:
        RecipeError: There are not as many.
    """
    every = [Unit(group.name, index) for group in groups for index in range(group.units)]
    if count > len(every):
        raise RecipeError(f"--units {count}: only {len(every)} units of the network may be removed; ask for fewer")
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return tuple(every[position] for position in order[:count].tolist())


def rise(unit_rises: Iterable[tuple[float, float]], samples: tuple[int, ...]) -> list[float]:
    """Rises on all samples, from those on the halves."""
    first, second = samples
    return [(a * first + b * second) / (first + second) for a, b in unit_rises]
