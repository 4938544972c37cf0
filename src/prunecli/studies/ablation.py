"""Exact ablation: how much the loss rises when one unit is removed, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.copying import sharing_parameters
from prunecli.criteria.base import Calibration
from prunecli.errors import RecipeError
from prunecli.inputs import cast_inputs, model_device, run_batch, sample_count
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.running import without_fastpath


@dataclass(frozen=True)
class Unit:
    """One unit of a network.

    Attributes:
        group: Name of its group.
        index: Its number there.
    """

    group: str
    index: int


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


def keep_all_but(group: ChannelGroup, index: int) -> Tensor:
    """Indices of all units of a group but one."""
    return torch.cat([torch.arange(index), torch.arange(index + 1, group.units)])


class Ablation:
    """Removes single units from copies of a network, as pruning does, and sums the loss of calibration samples.

    Parameters that do not change are shared with the network, so a copy costs little. A removal does what pruning
    does for any kind of group: the temperature of attention is kept, for instance, and a normalisation over channels
    is one over those that stay.

    Args:
        model: The network; not changed.
        groups: Its groups.
        halves: Calibration data, in two halves.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[ChannelGroup], halves: tuple[Calibration, Calibration]
    ) -> None:
        self._model, self._halves = model, halves
        self._groups = {group.name: group for group in groups}
        self.samples = tuple(sum(sample_count(inputs) for inputs, _ in half.pairs()) for half in halves)
        self._before = self._losses(model)

    @property
    def baseline(self) -> float:
        """Mean loss of a sample with everything in place."""
        return sum(self._before) / sum(self.samples)

    def rises(self, unit: Unit) -> tuple[float, float]:
        """By how much the mean loss of a sample rises without a unit, on each half of the data."""
        group = self._groups[unit.group]
        scaled = {f"{scale.module}.{scale.tensor}".lstrip(".") for scale in group.scales}
        ablated = sharing_parameters(self._model, scaled)
        remove(ablated, [group], {group.name: keep_all_but(group, unit.index)})
        after = self._losses(ablated)
        first, second = ((b - a) / count for a, b, count in zip(self._before, after, self.samples, strict=True))
        return first, second

    def _losses(self, model: nn.Module) -> tuple[float, ...]:
        return tuple(_summed_loss(model, half) for half in self._halves)


def _summed_loss(model: nn.Module, calibration: Calibration) -> float:
    """The loss of all samples, in evaluation mode."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    total = 0.0
    with torch.no_grad(), without_fastpath():
        for inputs, labels in calibration.pairs():
            output = run_batch(model, inputs)
            total += float(calibration.loss(output, cast_inputs(labels, model_device(model))))
    for module, mode in training.items():
        module.training = mode
    return total


def rise(unit_rises: Iterable[tuple[float, float]], samples: tuple[int, ...]) -> list[float]:
    """Rises on all samples, from those on the halves."""
    first, second = samples
    return [(a * first + b * second) / (first + second) for a, b in unit_rises]
