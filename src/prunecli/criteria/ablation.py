"""Exact ablation: how much the loss rises when units are removed, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli import modes
from prunecli.copying import sharing_parameters
from prunecli.criteria.base import Calibration, OwnShare, total_loss
from prunecli.inputs import logits, run_batch, sample_count
from prunecli.ranks import summed
from prunecli.surgery.groups import ChannelGroup, Keep
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
        return self.rises_with({unit.group: keep_all_but(self._groups[unit.group], unit.index)})

    def rises_with(self, keep: Keep) -> tuple[float, float]:
        """The same without all units but those in `keep`; groups that it does not name keep everything."""
        groups = [self._groups[name] for name in keep]
        scaled = {f"{scale.module}.{scale.tensor}".lstrip(".") for group in groups for scale in group.scales}
        ablated = sharing_parameters(self._model, scaled)
        remove(ablated, groups, keep)
        after = self._losses(ablated)
        first, second = ((b - a) / count for a, b, count in zip(self._before, after, self.samples, strict=True))
        return first, second

    def _losses(self, model: nn.Module) -> tuple[float, ...]:
        return tuple(summed_loss(model, half) for half in self._halves)


def summed_loss(model: nn.Module, calibration: Calibration) -> float:
    """The loss of all samples, in evaluation mode; processes that work together share the batches."""
    total = 0.0
    with evaluating(model):
        for inputs, labels in OwnShare(calibration).pairs():
            total += float(total_loss(model, inputs, labels, calibration.loss))
    return float(summed([torch.tensor(total, dtype=torch.float64)])[0])


def measured_loss(model: nn.Module, calibration: Calibration) -> Callable[[nn.Module], float]:
    """What to compare a network with parts of it.

    Args:
        model: The whole network.
        calibration: Data.

    Returns:
        From a network to the loss of all samples; without labels, to half the squared distance of its outputs to those
        of the whole network, which cannot be fooled by a network that is sure of something else.
    """
    if all(labels is not None for _, labels in calibration.pairs()):
        return lambda network: summed_loss(network, calibration)
    whole = _outputs(model, calibration)

    def distance(network: nn.Module) -> float:
        pairs = zip(whole, _outputs(network, calibration), strict=True)
        total = sum(float((now.double() - then.double()).square().sum()) / 2 for then, now in pairs)
        return float(summed([torch.tensor(total, dtype=torch.float64)])[0])

    return distance


def _outputs(model: nn.Module, calibration: Calibration) -> list[Tensor]:
    """Outputs for the batches that this process looks at."""
    with evaluating(model):
        return [logits(run_batch(model, inputs)).cpu() for inputs, _ in OwnShare(calibration).pairs()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which a network is in evaluation mode and computes no gradients."""
    with torch.no_grad(), modes.evaluating(model), without_fastpath():
        yield
