"""What the other channels cannot make up for: the optimal brain surgeon (Hassibi and Stork, 1992) on whole units.

A layer that reads x with a weight W gives W x. Without the columns J of one unit, and with all others changed to fit
best, the squared error of W x grows by

    tr(W_J [(H^-1)_JJ]^-1 W_J^T),    H = C + ridge mean(diag C) I,

where C is the covariance of x for a layer with a bias, which takes up a constant, and E[x x^T] for one without; the
ridge keeps the columns near what they are. For a unit of one column that is ||W_j||^2 / (H^-1)_jj. It is what
compensation by least squares (`ls`) leaves, and no labels are needed. A unit's score is that share of the
layer's E|W x|^2, added up over the layers that read it. (Kurtic et al., ZipLM, NeurIPS 2023, score alike.)

A convolution reads the covariance of channels at the same place with each of its taps, so correlations of different
places are left out. A layer that reads a flattened map counts as a convolution over it where it has more than 4096
columns: its covariance is then that of the group's own units, over all places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.criteria.base import Calibration, member_tensor
from prunecli.criteria.readers import UNSEEN, exact, tappable, watch_readers
from prunecli.surgery.groups import ChannelGroup, Member

WIDEST = 4096
"""Columns of the largest matrix that is inverted: 134 MB."""
_TOO_WIDE = f"obs inverts the covariance of what reads it, and that has more than {WIDEST} columns"
_SILENT = "the layers that read it give zero on the calibration data"


def obs(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Share of the readers' outputs that is lost with a unit when the others make up for it; see the module."""
    return {
        group.name: surgeons if isinstance(surgeons, str) else _costs(surgeons)
        for group, surgeons in _surgeons_of(model, groups, calibration)
    }


def obs_greedy(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """The same, one unit after the other: the cheapest goes, the rest is refitted, and counted again.

    A unit's score is what its own removal cost, after those before it; where that is less than what went before it
    (which had to go first), just above that, so that units with the lowest scores are those that went first.
    """
    return {
        group.name: surgeons if isinstance(surgeons, str) else _greedy(surgeons, group.units)
        for group, surgeons in _surgeons_of(model, groups, calibration)
    }


class Covariance:
    """Count, mean and centred second moments of rows, in float64 and one pass (Chan, 1979).

    Attributes:
        count: Rows so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._products = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Takes in rows of shape (rows, columns)."""
        values = exact(rows)
        mean = values.mean(dim=0)
        centred = values - mean
        products = (centred.T @ centred).cpu()
        total = self.count + len(values)
        shift = mean.cpu() - self._mean
        self._products = self._products + products + torch.outer(shift, shift) * (self.count * len(values) / total)
        self._mean = self._mean + shift * (len(values) / total)
        self.count = total

    def second(self, *, centred: bool) -> Tensor:
        """The covariance, or E[x x^T], of shape (columns, columns)."""
        products = self._products / self.count
        return products if centred else products + torch.outer(self._mean, self._mean)


@dataclass
class _Surgeon:
    """One reader of one group.

    Attributes:
        inverse: H^-1, shape (columns, columns).
        gram: W^T W, of the same shape.
        index: Columns of each unit, shape (units, columns per unit).
        scale: E|W x|^2.
    """

    inverse: Tensor
    gram: Tensor
    index: Tensor
    scale: float

    def costs(self, units: Tensor) -> Tensor:
        """What the removal of each of `units` alone costs, shape (units,)."""
        index = self.index[units]
        if index.shape[1] == 1:
            columns = index.flatten()
            alone: Tensor = self.gram.diagonal()[columns] / self.inverse.diagonal()[columns]
        else:
            rows, columns = index.unsqueeze(2), index.unsqueeze(1)
            blocks = torch.linalg.solve(self.inverse[rows, columns], self.gram[rows, columns])
            alone = blocks.diagonal(dim1=1, dim2=2).sum(dim=1)
        return alone.clamp_min(0) / self.scale

    def remove(self, unit: int) -> None:
        """Takes one unit out and refits the others."""
        gone = self.index[unit]
        across = self.inverse[gone]  # (H^-1)_J:
        fit = torch.linalg.solve(across[:, gone], across)  # W - W_J fit is the refitted weight
        read = self.gram[gone]
        shift = fit.T @ read
        self.gram += fit.T @ (read[:, gone] @ fit) - shift - shift.T
        self.inverse -= across.T @ fit


def _costs(surgeons: Sequence[_Surgeon]) -> Tensor:
    units = torch.arange(len(surgeons[0].index))
    return torch.stack([surgeon.costs(units) for surgeon in surgeons]).sum(dim=0)


def _greedy(surgeons: Sequence[_Surgeon], count: int) -> Tensor:
    scores, left, before = torch.zeros(count, dtype=torch.float64), torch.arange(count), torch.tensor(-torch.inf)
    for _ in range(count):
        costs = torch.stack([surgeon.costs(left) for surgeon in surgeons]).sum(dim=0)
        place = int(costs.argmin())
        unit = int(left[place])
        scores[unit] = before = torch.maximum(costs[place], torch.nextafter(before.double(), torch.tensor(1e300)))
        for surgeon in surgeons:
            surgeon.remove(unit)
        left = torch.cat([left[:place], left[place + 1 :]])
    return scores


def _surgeons_of(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration
) -> list[tuple[ChannelGroup, list[_Surgeon] | str]]:
    """What every group's readers need, or why there is nothing."""
    readers = {group.name: [_Reader(model, member, group) for member in tappable(model, group)] for group in groups}
    covariances: dict[tuple[str, ...], Covariance] = {}
    by_name: dict[str, dict[tuple[str, ...], _Reader]] = {}
    for own in readers.values():
        for reader in own:
            if reader.possible:
                by_name.setdefault(reader.member.name, {}).setdefault(reader.key, reader)

    def see(name: str, rows: Tensor) -> None:
        for key, reader in by_name.get(name, {}).items():
            covariances.setdefault(key, Covariance()).add(reader.observed(rows))

    watch_readers(model, groups, calibration, see)
    ridge = float(calibration.options.get("ridge", 0.01))
    result: list[tuple[ChannelGroup, list[_Surgeon] | str]] = []
    for group in groups:
        own = readers[group.name]
        heard = [reader for reader in own if reader.key in covariances]
        surgeons = [reader.surgeon(covariances[reader.key], ridge) for reader in heard]
        why = _SILENT if heard else UNSEEN if all(reader.possible for reader in own) else _TOO_WIDE
        result.append((group, [surgeon for surgeon in surgeons if surgeon is not None] or why))
    return result


class _Reader:
    """A weight that reads a group.

    Attributes:
        member: Where it lies.
        key: What its covariance is that of: the weight's input, or the group's units in it.
        possible: Whether that covariance can be inverted.
    """

    def __init__(self, model: nn.Module, member: Member, group: ChannelGroup) -> None:
        self.member = member
        self._module = model.get_submodule(member.module)
        self._weight = exact(member_tensor(model, member).detach()).cpu()
        self._blocks = self._module.groups if isinstance(self._module, _ConvNd) else 1
        columns = self._weight.shape[member.dim]
        self._repeats = 1 if isinstance(self._module, _ConvTransposeNd) else self._blocks
        self._pooled = columns * self._repeats > WIDEST
        self.possible = not self._pooled or (len(member.index) <= WIDEST and self._blocks == 1)
        self.key = (member.name, group.name) if self._pooled else (member.name,)

    def observed(self, rows: Tensor) -> Tensor:
        """What the covariance is made of, from rows of input channels."""
        if not self._pooled:
            return rows
        return rows[:, self.member.index.to(rows.device)].movedim(1, -1).flatten(0, 1)

    def surgeon(self, covariance: Covariance, ridge: float) -> _Surgeon | None:
        """None where the layer gives zero."""
        bias = getattr(self._module, self.member.tensor.replace("weight", "bias"), None)
        second, gram, index = covariance.second(centred=bias is not None), *self._gram()
        second = _within_blocks(second, self._blocks)
        scale = float((second * gram).sum())
        if scale <= 0:
            return None
        strength = ridge * float(second.diagonal().mean())
        regular = second + strength * torch.eye(len(second), dtype=second.dtype)
        return _Surgeon(torch.cholesky_inverse(torch.linalg.cholesky(regular)), gram, index, scale)

    def _gram(self) -> tuple[Tensor, Tensor]:
        """W^T W by what the covariance is of, and the units' places in that."""
        index, dim, weight = self.member.index, self.member.dim, self._weight
        if self._pooled:
            places = weight.movedim(dim, -1).reshape(-1, weight.shape[dim])[:, index]  # (rows, units, places)
            flat = places.movedim(1, -1).reshape(-1, len(index))
            return flat.T @ flat, torch.arange(len(index))[:, None]
        if self._repeats == 1:
            flat = weight.movedim(dim, -1).reshape(-1, weight.shape[dim])
            return _within_blocks(flat.T @ flat, self._blocks), index
        by_block = weight.reshape(self._blocks, -1, *weight.shape[1:]).movedim(dim + 1, -1).flatten(1, -2)
        grams = by_block.transpose(1, 2) @ by_block
        offsets = torch.arange(self._blocks) * weight.shape[dim]
        whole = torch.zeros(self._blocks * weight.shape[dim], self._blocks * weight.shape[dim], dtype=weight.dtype)
        for offset, gram in zip(offsets.tolist(), grams, strict=True):
            whole[offset : offset + len(gram), offset : offset + len(gram)] = gram
        return whole, (index[:, :, None] + offsets).flatten(1)


def _within_blocks(matrix: Tensor, blocks: int) -> Tensor:
    """A matrix without what lies between different blocks."""
    block = torch.arange(len(matrix)) // (len(matrix) // blocks)
    return matrix * (block[:, None] == block)
