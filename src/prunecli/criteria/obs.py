"""What the other channels cannot make up for: the optimal brain surgeon (Hassibi and Stork, 1992) on whole units.

A layer that reads x with a weight W gives W x. Without the columns J of one unit, and with all others changed to fit
best, the squared error of W x grows by

    tr(W_J [(H^-1)_JJ]^-1 W_J^T),    H = C + ridge mean(diag C) I,

where C is the covariance of x for a layer with a bias, which takes up a constant, and E[x x^T] for one without; the
ridge keeps the columns near what they are. For a unit of one column that is ||W_j||^2 / (H^-1)_jj. It is what
compensation by least squares (`ls`) leaves, and no labels are needed. A unit's score is that share of the
layer's E|W x|^2, added up over the layers that read it. (Kurtic et al., ZipLM, NeurIPS 2023, score alike.)

Of a convolution, every tap of a channel is a column (`taps`). Without that, or with groups, or where it would have more
than 4,608 columns, it reads the covariance of channels at the same place with each of its taps, so correlations of
different places are left out. A layer that reads a flattened map counts as a convolution over it where it has more than
4,608 columns: its covariance is then that of the group's own units, over all places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, OwnShare
from prunecli.criteria.readers import watch_readers
from prunecli.criteria.surgeon import Covariance, Covariances, Extraction, Readers, Surgeon
from prunecli.surgery.groups import ChannelGroup


def obs(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Share of the readers' outputs that is lost with a unit when the others make up for it; see the module."""
    return {
        name: surgeons if isinstance(surgeons, str) else _costs(surgeons)
        for name, surgeons in _surgeons_of(model, groups, calibration)
    }


def obs_greedy(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """The same, one unit after the other: the cheapest goes, the rest is refitted, and counted again.

    A unit's score is what its own removal cost, after those before it; where that is less than what went before it
    (which had to go first), just above that, so that units with the lowest scores are those that went first.
    """
    return {
        name: surgeons if isinstance(surgeons, str) else _greedy(surgeons, len(surgeons[0].index))
        for name, surgeons in _surgeons_of(model, groups, calibration)
    }


def _costs(surgeons: Sequence[Surgeon]) -> Tensor:
    units = torch.arange(len(surgeons[0].index))
    return torch.stack([surgeon.costs(units) for surgeon in surgeons]).sum(dim=0)


def _greedy(surgeons: Sequence[Surgeon], count: int) -> Tensor:
    scores, left, before = torch.zeros(count, dtype=torch.float64), torch.arange(count), torch.tensor(-torch.inf)
    removals = [Extraction(surgeon) for surgeon in surgeons]
    for _ in range(count):
        costs = torch.stack([removal.costs(left) for removal in removals]).sum(dim=0)
        place = int(costs.argmin())
        unit = int(left[place])
        scores[unit] = before = torch.maximum(costs[place], torch.nextafter(before.double(), torch.tensor(1e300)))
        for removal in removals:
            removal.remove(unit)
        left = torch.cat([left[:place], left[place + 1 :]])
    return scores


def _surgeons_of(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration
) -> Iterator[tuple[str, list[Surgeon] | str]]:
    readers, covariances = Readers(model, groups, taps=bool(calibration.options.get("taps", True))), Covariances()
    watch_readers(model, groups, OwnShare(calibration), partial(readers.see, covariances), readers.unfolded)
    return readers.surgeons(Covariance.over_ranks(covariances), float(calibration.options.get("ridge", 0.01)))
