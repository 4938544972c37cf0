"""Size or spread of a channel's activations, after Hu et al. (Network Trimming, 2016) and Luo and Wu (2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, OwnShare
from prunecli.criteria.readers import UNSEEN, by_unit, exact, tappable, watch_readers
from prunecli.ranks import summed_by_name, together
from prunecli.surgery.groups import ChannelGroup


@dataclass
class Moments:
    """Count, mean, mean absolute value and squared deviations of each channel, in float64 and one pass (Chan, 1979)."""

    count: int
    mean: Tensor
    absolute: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Moments of rows of shape (values, channels)."""
        values = exact(rows)
        mean = values.mean(dim=0)
        return cls(len(values), mean.cpu(), values.abs().mean(dim=0).cpu(), (values - mean).square().sum(dim=0).cpu())

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        share = other.count / count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * share,
            self.absolute + (other.absolute - self.absolute) * share,
            self.deviations + other.deviations + shift.square() * (self.count * share),
        )

    @property
    def std(self) -> Tensor:
        """Standard deviation of the population."""
        return (self.deviations / self.count).sqrt()

    @classmethod
    def over_ranks(cls, seen: Mapping[str, Moments]) -> dict[str, Moments]:
        """The moments of what all processes have seen, by name."""
        if not together():
            return dict(seen)
        totals = summed_by_name(
            {
                name: torch.stack([torch.ones_like(one.mean), one.mean, one.absolute]) * one.count
                for name, one in seen.items()
            }
        )
        means = {name: total[1:] / total[0] for name, total in totals.items()}
        deviations = summed_by_name(
            {name: one.deviations + one.count * (one.mean - means[name][0]).square() for name, one in seen.items()}
        )
        return {
            name: cls(int(total[0, 0]), means[name][0], means[name][1], deviations[name])
            for name, total in totals.items()
        }


def activation(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Mean absolute value, or standard deviation (option `statistic`), of a channel where its readers take it in.

    Taken over samples and positions, and averaged over the readers.
    """
    moments = reader_moments(model, groups, calibration)
    spread = calibration.options.get("statistic", "mean") == "std"
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        by_reader = [
            by_unit(model, member, moments[member.name].std if spread else moments[member.name].absolute)
            for member in tappable(model, group)
            if member.name in moments
        ]
        scores[group.name] = torch.stack(by_reader).mean(dim=0) if by_reader else UNSEEN
    return scores


def reader_moments(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Moments]:
    """Moments of what readers take in over all batches, by the name of their weight."""
    moments: dict[str, Moments] = {}

    def see(name: str, rows: Tensor) -> None:
        new = Moments.of(rows)
        moments[name] = moments[name] + new if name in moments else new

    watch_readers(model, groups, OwnShare(calibration), see)
    return Moments.over_ranks(moments)
