"""Normal equations of one layer: from what it reads to what it should give, summed up batch by batch.

For rows x of inputs and y of targets, centred where the layer's output may be shifted, the weights are

    W = (H + l I)^-1 (G + l W0),   H = X'X / n,   G = X'Y / n,   l = ridge * mean(diag H),

the least-squares solution drawn towards the weights W0 that the layer has. Each half of the batches has sums of its
own, so that the ridge is the one with the least error on the half that it was not fitted to; if no solution is better
there than W0, the layer stays as it is. (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV
2017, solve the same problem for the kept channels; the ridge towards W0 is that of OSSCAR, Meng et al., ICML 2024.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunecli.ranks import summed, together

_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass
class Sums:
    """Sums over rows, for G groups of a layer by themselves.

    Attributes:
        count: How many rows.
        inputs: Sum of x, shape (G, columns).
        targets: Sum of y, shape (G, outputs).
        squares: Sum of y*y, shape (G, outputs).
        gram: Sum of x x', shape (G, columns, columns).
        cross: Sum of x y', shape (G, columns, outputs).
    """

    count: int
    inputs: Tensor
    targets: Tensor
    squares: Tensor
    gram: Tensor
    cross: Tensor

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int) -> Sums:
        """No rows."""

        def zeros(*size: int) -> Tensor:
            return torch.zeros(groups, *size, dtype=torch.float64)

        return cls(0, zeros(columns), zeros(outputs), zeros(outputs), zeros(columns, columns), zeros(columns, outputs))

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Adds rows: inputs (G, rows, columns), targets (G, rows, outputs)."""
        inputs, targets = inputs.float(), targets.float()
        self.count += inputs.shape[1]
        self.inputs += inputs.sum(1, dtype=torch.float64).cpu()
        self.targets += targets.sum(1, dtype=torch.float64).cpu()
        self.squares += targets.square().sum(1, dtype=torch.float64).cpu()
        self.gram += (inputs.mT @ inputs).cpu().double()
        self.cross += (inputs.mT @ targets).cpu().double()

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.inputs + other.inputs,
            self.targets + other.targets,
            self.squares + other.squares,
            self.gram + other.gram,
            self.cross + other.cross,
        )

    def over_ranks(self) -> Sums:
        """The sums of all processes together."""
        if not together():
            return self
        tensors = [torch.tensor(self.count), self.inputs, self.targets, self.squares, self.gram, self.cross]
        count, *sums = summed(tensors)
        return Sums(int(count), *sums)

    def is_finite(self) -> bool:
        """Whether there are rows, and no infinite or undefined values among them."""
        return self.count > 0 and bool(self.gram.isfinite().all() & self.cross.isfinite().all())

    def moments(self, centred: bool) -> _Moments:
        """Means over rows, or covariances."""
        gram, cross, squares = self.gram / self.count, self.cross / self.count, self.squares / self.count
        if not centred:
            return _Moments(gram, cross, squares)
        x, y = self.inputs / self.count, self.targets / self.count
        return _Moments(
            gram - x.unsqueeze(2) * x.unsqueeze(1), cross - x.unsqueeze(2) * y.unsqueeze(1), squares - y.square()
        )

    def statistics(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of what a layer with `weights` (G, columns, outputs) gives, without bias; each flat."""
        mean = (self.inputs.unsqueeze(1) @ weights).squeeze(1) / self.count
        return mean.flatten(), (weights * (self.moments(True).gram @ weights)).sum(1).flatten()

    def shift(self, weights: Tensor) -> Tensor:
        """What a layer with `weights` (G, columns, outputs) lacks on average, shape (G, outputs)."""
        return (self.targets - (self.inputs.unsqueeze(1) @ weights).squeeze(1)) / self.count


@dataclass(frozen=True)
class _Moments:
    gram: Tensor
    cross: Tensor
    squares: Tensor

    def error(self, weights: Tensor) -> float:
        """Mean squared error of weights, relative to the mean square of the targets, averaged over groups."""
        lost = (weights * (self.gram @ weights)).sum(1) - 2 * (weights * self.cross).sum(1) + self.squares
        return float(lost.sum() / self.squares.sum().clamp_min(torch.finfo(torch.float64).tiny))

    def solved(self, former: Tensor, ridge: float) -> Tensor:
        strength = ridge * self.gram.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
        strength = strength.reshape(-1, 1, 1)
        regular = self.gram + strength * torch.eye(self.gram.shape[-1], dtype=self.gram.dtype)
        factor, failed = torch.linalg.cholesky_ex(regular)
        right = self.cross + strength * former
        if bool(failed.any()):
            solution: Tensor = torch.linalg.lstsq(regular, right).solution
            return solution
        return torch.cholesky_solve(right, factor)


def solve(halves: tuple[Sums, Sums], former: Tensor, *, shifted: bool) -> Tensor | None:
    """The weights of a layer.

    Args:
        halves: Sums over the even and the odd batches.
        former: The weights it has, shape (G, columns, outputs).
        shifted: Whether its output may be shifted by a constant.

    Returns:
        Weights of that shape; None if those it has are as good on data that they were not fitted to, or if a half has
        no rows or values that are not finite.
    """
    if not all(half.is_finite() for half in halves):
        return None
    first, second = (half.moments(shifted) for half in halves)

    def error(ridge: float) -> float:
        return (second.error(first.solved(former, ridge)) + first.error(second.solved(former, ridge))) / 2

    best, least = _least(error)
    if not least < (first.error(former) + second.error(former)) / 2:
        return None
    return (halves[0] + halves[1]).moments(shifted).solved(former, best)


def _least(error: Callable[[float], float]) -> tuple[float, float]:
    """The ridge with the least error, and that error; from the middle one on, as long as it falls."""
    middle = len(_RIDGES) // 2
    best, least = middle, error(_RIDGES[middle])
    for step in (-1, 1):
        place = middle + step
        while 0 <= place < len(_RIDGES) and (value := error(_RIDGES[place])) < least:
            best, least, place = place, value, place + step
        if best != middle:
            break
    return _RIDGES[best], least
