"""Optimal brain surgery by layer, after Frantar and Alistarh (SparseGPT: Massive Language Models Can Be Accurately
Pruned in One-Shot, ICML 2023).

Each output of a layer is a least-squares problem in its weights with Hessian H = X X^T, X being the layer's inputs.
Weights are handled column by column; where one goes, those to its right take over what they can (optimal brain
surgeon): with U the upper Cholesky factor of H^-1, removing w_j adds -w_j U_j,k / U_jj to every later w_k. Which ones
go is decided at the beginning of each block of columns, by w_j^2 / U_jj^2: the error that removing it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, OwnShare
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod
from prunecli.criteria.weights.inputs import UNSEEN, over_ranks, watch_inputs, why_unwatched
from prunecli.sparsity.choosing import Goal, lowest, lowest_in_rows, spread, zeros_in

_BLOCK = 128
_DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean."""
_PASSES = 8
"""How often the data are run at most: layers further back see the inputs that masked ones in front give them."""
_MAX_BYTES = 1 << 30
_TOO_WIDE = "its Hessian would take more than a GiB"
_SILENT = "its inputs are all zero on the calibration data"


def sparsegpt(
    model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration, goal: Goal
) -> dict[str, str]:
    """Masks every layer to the same share and adjusts its other weights, front to back."""
    reasons: dict[str, str] = {}
    for part in _parts(weights, reasons):
        hessians = _hessians(model, part, calibration)
        for weight in part:
            hessian = hessians.pop(weight.name, None)
            if hessian is None:
                reasons[weight.name] = UNSEEN
                continue
            if not bool(hessian.diagonal(dim1=1, dim2=2).any()):
                reasons[weight.name] = _SILENT
                continue
            blocks = weight.blocks(weight.values().to(hessian.device))
            solved, keep = solve(blocks, hessian, goal)
            with torch.no_grad():
                weight.parameter.copy_(weight.restored(solved).to(weight.parameter))
            weight.mask(keep)
    return reasons


def solve(weights: Tensor, hessian: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Weights and mask of one layer.

    Args:
        weights: Blocks (groups, outputs, inputs) in float64; zeros stay masked.
        hessian: X X^T of every group, (groups, inputs, inputs).
        goal: How many weights go.

    Returns:
        The adjusted weights, zero where they are masked, and which ones stay.
    """
    solved, factor = weights.clone(), _factor(hessian)
    gone = weights == 0
    # Every block of columns gives the same share of the weights that it still has.
    starts = list(range(0, weights.shape[2], _block_size(goal)))
    room = torch.stack([(~gone[..., start : start + _block_size(goal)]).sum() for start in starts])
    shares = torch.zeros_like(room)
    if goal.pattern is None:
        total = zeros_in(torch.where(gone, -torch.inf, weights), goal)
        shares = spread(total - int(gone.sum()), room)
    for start, share in zip(starts, shares.tolist(), strict=True):
        block = slice(start, start + _block_size(goal))
        gone[..., block] = _gone_in_block(solved[..., block], gone[..., block], factor[:, block, block], goal, share)
        _remove(solved, gone, factor, block)
    return solved.masked_fill(gone, 0.0), ~gone


def _block_size(goal: Goal) -> int:
    """With a pattern the mask of M columns is decided when they are reached, as in the paper."""
    return _BLOCK if goal.pattern is None else goal.pattern[1]


def _factor(hessian: Tensor) -> Tensor:
    damped = hessian.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    # A group without any input has no scale of its own.
    diagonal += _DAMPING * torch.where(mean > 0, mean, torch.ones_like(mean))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _gone_in_block(weights: Tensor, gone: Tensor, factor: Tensor, goal: Goal, share: int) -> Tensor:
    errors = (weights / factor.diagonal(dim1=1, dim2=2).unsqueeze(1)).square()
    errors = errors.masked_fill(gone, -torch.inf)
    if goal.pattern is None:
        return lowest(errors.flatten(), share + int(gone.sum())).view_as(gone)
    kept, of = goal.pattern
    rows = errors.flatten(0, 1)
    counts = torch.full((len(rows),), of - kept, device=rows.device)
    return lowest_in_rows(rows, counts).view_as(gone) | gone


def _remove(weights: Tensor, gone: Tensor, factor: Tensor, block: slice) -> None:
    """Sets weights of a block of columns to zero, one column after the other, and adjusts all that come later."""
    columns = range(block.start, min(block.stop, weights.shape[2]))
    errors = weights.new_zeros(*weights.shape[:2], len(columns))
    for place, column in enumerate(columns):
        removed = torch.where(gone[..., column], weights[..., column], 0.0)
        errors[..., place] = removed / factor[:, column, column].unsqueeze(1)
        inside = slice(column, columns.stop)
        weights[..., inside] -= errors[..., place].unsqueeze(2) * factor[:, column, inside].unsqueeze(1)
    # The columns behind the block in one product: torch would spend its time on small ones.
    weights[..., columns.stop :] -= errors @ factor[:, block, columns.stop :]


def _hessians(model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}

    def see(weight: MaskableWeight, inputs: Tensor) -> None:
        product = inputs.transpose(1, 2) @ inputs
        sums[weight.name] = sums[weight.name] + product if weight.name in sums else product

    watch_inputs(model, weights, OwnShare(calibration), see)
    return over_ranks(sums)


def _parts(weights: Sequence[MaskableWeight], reasons: dict[str, str]) -> Iterator[list[MaskableWeight]]:
    """Layers whose Hessians are measured together: as many parts as there may be passes, more where memory asks it."""
    solvable = []
    for weight in weights:
        reason = why_unwatched(weight) or (_TOO_WIDE if _bytes(weight) > _MAX_BYTES else None)
        if reason is None:
            solvable.append(weight)
        else:
            reasons[weight.name] = reason
    length = max(1, -(-len(solvable) // _PASSES))
    part: list[MaskableWeight] = []
    for weight in solvable:
        if part and (len(part) == length or sum(map(_bytes, part)) + _bytes(weight) > _MAX_BYTES):
            yield part
            part = []
        part.append(weight)
    if part:
        yield part


def _bytes(weight: MaskableWeight) -> int:
    inputs = weight.parameter[0].numel()
    return int(8 * weight.groups * inputs**2)


SPARSEGPT = WeightMethod(solve=sparsegpt, scope="layer")
