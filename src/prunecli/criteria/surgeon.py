"""What a layer needs to make up for units that it no longer reads: the inverse covariance of what it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.criteria.base import member_tensor
from prunecli.criteria.readers import UNSEEN, exact, tappable
from prunecli.ranks import summed_by_name, together
from prunecli.surgery.groups import ChannelGroup, Member

WIDEST = 4608
"""Columns of the largest matrix that is inverted: 170 MB."""
_TOGETHER = 64
"""Rows that are collected before they are subtracted from a whole matrix."""
_TOO_WIDE = f"obs inverts the covariance of what reads it, and that has more than {WIDEST} columns"
_SILENT = "the layers that read it give zero on the calibration data"


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

    def __add__(self, other: Covariance) -> Covariance:
        joined = Covariance()
        joined.count = self.count + other.count
        shift = other._mean - self._mean
        products = torch.outer(shift, shift) * (self.count * other.count / joined.count)
        joined._products = self._products + other._products + products
        joined._mean = self._mean + shift * (other.count / joined.count)
        return joined

    @staticmethod
    def over_ranks(seen: Covariances) -> Covariances:
        """The covariances of what all processes have seen."""
        if not together():
            return seen
        keys = {"\n".join(key): key for key in seen}
        totals = summed_by_name(
            {name: torch.cat([torch.ones(1), seen[key]._mean]) * seen[key].count for name, key in keys.items()}
        )
        means = {name: total[1:] / total[0] for name, total in totals.items()}
        shifts = {name: seen[key]._mean - means[name] for name, key in keys.items()}
        products = summed_by_name(
            {
                name: seen[key]._products + torch.outer(shifts[name], shifts[name]) * seen[key].count
                for name, key in keys.items()
            }
        )
        joined: Covariances = {}
        for name, total in totals.items():
            own = joined[tuple(name.split("\n"))] = Covariance()
            own.count, own._mean, own._products = int(total[0]), means[name], products[name]
        return joined

    def second(self, *, centred: bool) -> Tensor:
        """The covariance, or E[x x^T], of shape (columns, columns)."""
        products = self._products / self.count
        return products if centred else products + torch.outer(self._mean, self._mean)


Covariances = dict[tuple[str, ...], Covariance]
"""By reader, or by reader and group."""


@dataclass
class Surgeon:
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
            blocks = torch.linalg.solve(_blocks(self.inverse, index), _blocks(self.gram, index))
            alone = _traces(blocks)
        return alone.clamp_min(0) / self.scale

    def strengths(self) -> Tensor:
        """||W_J||, the norm of the columns that read each unit, shape (units,)."""
        return _traces(_blocks(self.gram, self.index)).clamp_min(0).sqrt()

    def own_variances(self) -> Tensor:
        """The variance of each unit that the other channels do not explain, tr([(H^-1)_JJ]^-1), shape (units,)."""
        return _traces(torch.linalg.inv(_blocks(self.inverse, self.index)))


class Extraction:
    """One reader while unit after unit is taken out.

    H^-1 loses A^T F with every unit, and W^T W loses F^T S + S^T F. A = (H^-1)_J:, F = [(H^-1)_JJ]^-1 A is the fit
    of its columns to the others, S = (W^T W)_J: - 1/2 (W^T W)_JJ F. These rows are collected and subtracted
    together, so that most of the work is matrix products; only the blocks of single units are always up to date.

    Args:
        surgeon: The reader; its matrices are changed.
    """

    def __init__(self, surgeon: Surgeon) -> None:
        self._inverse, self._gram, self._index = surgeon.inverse, surgeon.gram, surgeon.index
        self._scale = surgeon.scale
        self._inverse_blocks, self._gram_blocks = _blocks(self._inverse, self._index), _blocks(self._gram, self._index)
        self._across, self._fits, self._shifts = ([torch.empty(0, len(self._inverse)).double()] for _ in range(3))
        self._rows = 0

    def costs(self, units: Tensor) -> Tensor:
        """What the removal of each of `units` costs now, shape (units,)."""
        inverse, gram = self._inverse_blocks[units], self._gram_blocks[units]
        alone = (
            gram[:, 0, 0] / inverse[:, 0, 0] if inverse.shape[1] == 1 else _traces(torch.linalg.solve(inverse, gram))
        )
        return alone.clamp_min(0) / self._scale

    def remove(self, unit: int) -> None:
        """Takes one unit out and refits the others."""
        gone = self._index[unit]
        earlier, fits, shifts = (torch.cat(parts) for parts in (self._across, self._fits, self._shifts))
        across = self._inverse[gone] - earlier[:, gone].T @ fits
        read = self._gram[gone] - fits[:, gone].T @ shifts - shifts[:, gone].T @ fits
        fit = torch.linalg.solve(across[:, gone], across)  # W - W_J fit is the refitted weight
        shift = read - read[:, gone] @ fit / 2
        across_of, fit_of, shift_of = (
            rows[:, self._index] for rows in (across, fit, shift)
        )  # (columns, units, columns)
        moved = torch.einsum("cui,cuj->uij", fit_of, shift_of)
        self._inverse_blocks -= torch.einsum("cui,cuj->uij", across_of, fit_of)
        self._gram_blocks -= moved + moved.transpose(1, 2)
        self._across, self._fits, self._shifts = [earlier, across], [fits, fit], [shifts, shift]
        self._rows += len(gone)
        if self._rows >= _TOGETHER:
            self._subtract()

    def _subtract(self) -> None:
        across, fits, shifts = (torch.cat(parts) for parts in (self._across, self._fits, self._shifts))
        self._inverse.addmm_(across.T, fits, alpha=-1)
        self._gram.addmm_(fits.T, shifts, alpha=-1).addmm_(shifts.T, fits, alpha=-1)
        self._across, self._fits, self._shifts = [across[:0]], [fits[:0]], [shifts[:0]]
        self._rows = 0


def _blocks(matrix: Tensor, index: Tensor) -> Tensor:
    """The square blocks of a matrix at each unit's columns, shape (units, columns per unit, columns per unit)."""
    blocks: Tensor = matrix[index.unsqueeze(2), index.unsqueeze(1)]
    return blocks


def _traces(blocks: Tensor) -> Tensor:
    return blocks.diagonal(dim1=1, dim2=2).sum(dim=1)


class Readers:
    """The weights that read some groups, and what their covariances are made of.

    Args:
        model: The network.
        groups: The groups.
        taps: Whether the taps of convolutions are columns of their own.

    Attributes:
        unfolded: The weights for which they are.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], *, taps: bool = False) -> None:
        self._readers = {
            group.name: [_Reader(model, member, group, taps) for member in tappable(model, group)] for group in groups
        }
        self.unfolded = {reader.member.name for own in self._readers.values() for reader in own if reader.taps > 1}
        self._by_name: dict[str, dict[tuple[str, ...], _Reader]] = {}
        for own in self._readers.values():
            for reader in own:
                if reader.possible:
                    self._by_name.setdefault(reader.member.name, {}).setdefault(reader.key, reader)

    def see(self, covariances: Covariances, name: str, rows: Tensor) -> None:
        """Adds what a weight takes in, as `prunecli.criteria.readers.watch_readers` shows it."""
        for key, reader in self._by_name.get(name, {}).items():
            covariances.setdefault(key, Covariance()).add(reader.observed(rows))

    def surgeons(self, covariances: Covariances, ridge: float) -> Iterator[tuple[str, list[Surgeon] | str]]:
        """Yields for each group its name, and what is needed of every reader, or why there is nothing.

        Args:
            covariances: What was seen.
            ridge: Strength relative to the mean of a covariance's diagonal.
        """
        for name, own in self._readers.items():
            heard = [reader for reader in own if reader.key in covariances]
            surgeons = [reader.surgeon(covariances[reader.key], ridge) for reader in heard]
            why = _SILENT if heard else UNSEEN if all(reader.possible for reader in own) else _TOO_WIDE
            yield name, [surgeon for surgeon in surgeons if surgeon is not None] or why


class _Reader:
    """A weight that reads a group.

    Attributes:
        member: Where it lies.
        key: What its covariance is that of: the weight's input, or the group's units in it.
        possible: Whether that covariance can be inverted.
        taps: Columns of each input channel.
    """

    def __init__(self, model: nn.Module, member: Member, group: ChannelGroup, taps: bool) -> None:
        self.member = member
        self._module = model.get_submodule(member.module)
        self._weight = exact(member_tensor(model, member).detach()).cpu()
        self._blocks = self._module.groups if isinstance(self._module, _ConvNd) else 1
        columns = self._weight.shape[member.dim]
        self._repeats = 1 if isinstance(self._module, _ConvTransposeNd) else self._blocks
        self._pooled = columns * self._repeats > WIDEST
        self.taps = _taps_of(self._module) if taps and self._blocks == 1 else 1
        if columns * self.taps > WIDEST:
            self.taps = 1
        self.possible = not self._pooled or (len(member.index) <= WIDEST and self._blocks == 1)
        self.key = (member.name, group.name) if self._pooled else (member.name,)

    def observed(self, rows: Tensor) -> Tensor:
        """What the covariance is made of, from rows of input channels."""
        if not self._pooled:
            return rows
        return rows[:, self.member.index.to(rows.device)].movedim(1, -1).flatten(0, 1)

    def surgeon(self, covariance: Covariance, ridge: float) -> Surgeon | None:
        """None where the layer gives zero."""
        bias = getattr(self._module, self.member.tensor.replace("weight", "bias"), None)
        second, gram, index = covariance.second(centred=bias is not None), *self._gram()
        second = _within_blocks(second, self._blocks)
        scale = float((second * gram).sum())
        if scale <= 0:
            return None
        strength = ridge * float(second.diagonal().mean())
        regular = second + strength * torch.eye(len(second), dtype=second.dtype)
        return Surgeon(torch.cholesky_inverse(torch.linalg.cholesky(regular)), gram, index, scale)

    def _gram(self) -> tuple[Tensor, Tensor]:
        """W^T W by what the covariance is of, and the units' places in that."""
        index, dim, weight = self.member.index, self.member.dim, self._weight
        if self.taps > 1:
            flat = weight.flatten(1)
            return flat.T @ flat, (index[:, :, None] * self.taps + torch.arange(self.taps)).flatten(1)
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


def _taps_of(module: nn.Module) -> int:
    """Weights between one input channel and one output channel of a convolution whose inputs can be unfolded."""
    return math.prod(module.kernel_size) if isinstance(module, (nn.Conv1d, nn.Conv2d)) else 1


def _within_blocks(matrix: Tensor, blocks: int) -> Tensor:
    """A matrix without what lies between different blocks."""
    block = torch.arange(len(matrix)) // (len(matrix) // blocks)
    return matrix * (block[:, None] == block)
