"""Streaming statistics of what weights take in: spread, rate, entropy and range of every input channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunecli.criteria.activation import Moments
from prunecli.ranks import summed_by_name, together

BINS = 32
"""Of the entropy."""
_FINE = 4
"""Bins of the quantiles in each of those."""
_AT_ONCE = 1 << 22
_TAILS = (0.05, 0.95)


@dataclass
class Activity:
    """Statistics of input channels, in one pass; a histogram of each is all that is kept of values.

    Attributes:
        limit: Values are counted in 32 bins from -limit to limit, and those beyond in the outermost.
        moments: Mean and deviation.
        active: How many values were not 0, shape (channels,).
        spiking: Whether all values were 0 or 1, shape (channels,).
        histogram: Counts, shape (channels, bins).
    """

    limit: float
    moments: Moments
    active: Tensor
    spiking: Tensor
    histogram: Tensor

    @classmethod
    def of(cls, rows: Tensor, limit: float) -> Activity:
        """Statistics of rows of shape (values, channels)."""
        rows = rows.detach()
        spiking = ((rows == 0) | (rows == 1)).all(dim=0).cpu()
        return cls(limit, Moments.of(rows), (rows != 0).sum(dim=0).cpu().double(), spiking, _histogram(rows, limit))

    def __add__(self, other: Activity) -> Activity:
        return Activity(
            self.limit,
            self.moments + other.moments,
            self.active + other.active,
            self.spiking & other.spiking,
            self.histogram + other.histogram,
        )

    @classmethod
    def over_ranks(cls, seen: Mapping[str, Activity], limits: Mapping[str, float]) -> dict[str, Activity]:
        """The statistics of what all processes have seen, by name.

        Args:
            seen: What this one has seen.
            limits: The limits, which have to be the same everywhere.
        """
        if not together():
            return dict(seen)
        moments = Moments.over_ranks({name: one.moments for name, one in seen.items()})
        counted = summed_by_name(
            {
                name: torch.cat([one.active[:, None], (~one.spiking)[:, None], one.histogram], dim=1)
                for name, one in seen.items()
            }
        )
        return {
            name: cls(limits[name], moments[name], counts[:, 0], counts[:, 1] == 0, counts[:, 2:].long())
            for name, counts in counted.items()
        }

    @property
    def rate(self) -> Tensor:
        """Share of values that are not 0: of spikes, the firing rate."""
        return self.active / self.moments.count

    def entropy(self) -> Tensor:
        """Entropy over the 32 bins by log 32; of units that spike, binary entropy of the rate by log 2."""
        shares = self.histogram.reshape(-1, BINS, _FINE).sum(dim=2).double() / self.moments.count
        spread = torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(BINS, dtype=torch.float64))
        rate = self.rate
        binary = (torch.special.entr(rate) + torch.special.entr(1 - rate)) / torch.log(torch.tensor(2.0)).double()
        return torch.where(self.spiking, binary, spread)

    def range(self) -> Tensor:
        """From the 5 % to the 95 % quantile, linear within bins."""
        low, high = (self._quantile(share) for share in _TAILS)
        return high - low

    def _quantile(self, share: float) -> Tensor:
        below = self.histogram.double().cumsum(dim=1) / self.moments.count
        bins = below.shape[1]
        place = (below < share).sum(dim=1).clamp_max(bins - 1)[:, None]
        before = torch.cat([torch.zeros(len(below), 1, dtype=torch.float64), below], dim=1).gather(1, place)
        inside = (share - before) / (below.gather(1, place) - before).clamp_min(torch.finfo(torch.float64).tiny)
        return (((place + inside.clamp(0, 1)) / bins * 2 - 1) * self.limit).flatten()


def limit_of(rows: Tensor) -> float:
    """1 for values within -1 and 1, as of tanh, LSTMs and spikes; else the largest size."""
    return max(1.0, float(rows.abs().max())) if rows.numel() else 1.0


def _histogram(rows: Tensor, limit: float) -> Tensor:
    bins, channels = BINS * _FINE, rows.shape[1]
    counts = torch.zeros(channels * bins, dtype=torch.int64)
    offsets = torch.arange(channels, device=rows.device) * bins
    for part in torch.split(rows, max(1, _AT_ONCE // max(channels, 1))):
        place = ((part.float() + limit) * (bins / (2 * limit))).long().clamp_(0, bins - 1)
        counts += torch.bincount((place + offsets).flatten(), minlength=len(counts)).cpu()
    return counts.reshape(channels, bins)
