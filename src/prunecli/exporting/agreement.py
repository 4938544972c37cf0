"""How far what was exported is from the network that it was made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.errors import VerificationError
from prunecli.inputs import Inputs, call, output_tensors, sample_count
from prunecli.measure.neurons import without_memory

TOLERANCE = 1e-4
"""Largest difference of an output relative to its largest number; sums in another order differ by a hundredth of it."""
_MOST_MOVED = 0.25
"""Share of samples for which a rounded number may decide otherwise, in networks that decide by numbers."""


@dataclass(frozen=True)
class Agreement:
    """What comparing two networks showed.

    Attributes:
        batches: Samples in each batch.
        largest: Largest absolute difference of a number.
        relative: The same relative to the largest number of its output.
        moved: Samples in which a decision, such as a spike, fell otherwise, because a sum was rounded otherwise; their
            differences are in neither of these.
        telling: Whether the outputs depend on the inputs: if not, agreement says little.
    """

    batches: tuple[int, ...]
    largest: float
    relative: float
    moved: int = 0
    telling: bool = True


def agreement(
    network: nn.Module, exported: nn.Module, batches: Sequence[Inputs], *, decides: bool = False, name: str = "it"
) -> Agreement:
    """Compares an exported network with the original, sample by sample.

    Args:
        network: The original, in evaluation mode and single precision.
        exported: What runs the exported one.
        batches: Inputs.
        decides: Whether the network makes decisions by comparing numbers, as neurons do that spike and as tokens are
            chosen: then rounding may change some samples as a whole, and up to a quarter of them are left out.
        name: What to call the network.

    Raises:
        VerificationError: Outputs have other shapes, or differ by more than rounding explains.
    """
    rows: list[tuple[float, float]] = []
    seen: list[Tensor] = []
    sizes = tuple(sample_count(inputs) for inputs in batches)
    for inputs, count in zip(batches, sizes, strict=True):
        with torch.no_grad(), without_memory(network):
            expected, found = (output_tensors(call(model, inputs)) for model in (network, exported))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, found)]
        if shapes[0] != shapes[1]:
            raise VerificationError(
                f"{name}: exported, it gives outputs {shapes[1]} for {count} samples, not {shapes[0]}"
            )
        rows += _by_sample(expected, found, count)
        seen += [tensor.double().flatten(1) for tensor in expected if tensor.dim() > 1 and len(tensor) == count][:1]
    wrong = [row for row in rows if not row[1] <= TOLERANCE]
    if len(wrong) > (_MOST_MOVED * len(rows) if decides else 0):
        worst = max(rows, key=lambda row: math.inf if math.isnan(row[1]) else row[1])
        raise VerificationError(
            f"{name}: exported, it differs by {worst[0]:.3g} from what PyTorch computes, {worst[1]:.1e} of the largest "
            f"output (at most {TOLERANCE:.0e} is rounding), in {len(wrong)} of {len(rows)} samples; nothing was written"
        )
    right = [row for row in rows if row[1] <= TOLERANCE] or [(0.0, 0.0)]
    return Agreement(sizes, max(r[0] for r in right), max(r[1] for r in right), len(wrong), _vary(seen))


def _by_sample(expected: list[Tensor], found: list[Tensor], count: int) -> list[tuple[float, float]]:
    """Largest absolute and relative difference of each sample; one row where outputs are not samples."""
    pairs = [(one.detach().double(), other.detach().double()) for one, other in zip(expected, found, strict=True)]
    batched = all(one.dim() > 0 and len(one) == count for one, _ in pairs)
    rows = []
    for index in range(count) if batched else [slice(None)]:
        parts = [_difference(one, other, index) for one, other in pairs if one.numel()]
        rows.append((max((p[0] for p in parts), default=0.0), max((p[1] for p in parts), default=0.0)))
    return rows


def _difference(expected: Tensor, found: Tensor, index: int | slice) -> tuple[float, float]:
    """Of one sample; relative to the largest finite number of all samples."""
    one, other = expected[index], found[index]
    finite = torch.isfinite(one)
    if not torch.equal(finite, torch.isfinite(other)) or not _same_infinities(one, other, finite):
        return math.inf, math.inf
    largest = float((one - other)[finite].abs().max()) if bool(finite.any()) else 0.0
    whole = expected[torch.isfinite(expected)]
    scale = float(whole.abs().max()) if whole.numel() else 0.0
    return largest, largest / scale if scale > 0 else largest


def _same_infinities(one: Tensor, other: Tensor, finite: Tensor) -> bool:
    return torch.equal(one[~finite].nan_to_num(), other[~finite].nan_to_num())


def _vary(outputs: list[Tensor]) -> bool:
    """Whether samples give different outputs."""
    rows = [row for output in outputs for row in output]
    return not rows or any(row.shape != rows[0].shape or not torch.equal(row, rows[0]) for row in rows[1:])
