"""How much residual blocks matter: how far they turn their input, and what the loss says without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.collective import in_turn
from prunecli.criteria.ablation import evaluating, measured_loss
from prunecli.criteria.base import Calibration
from prunecli.inputs import output_tensors, run_batch, sample_count
from prunecli.phases import step
from prunecli.ranks import summed
from prunecli.surgery.blocks.residual import ResidualBlock, passed_tensors
from prunecli.surgery.blocks.switching import switched_off

_TOKENS = 3
"""Dimensions of a sequence: samples, positions, features."""

BlockScore = Callable[[nn.Module, Sequence[ResidualBlock], Sequence[ResidualBlock], Calibration], dict[str, float]]
"""From a network, the blocks to score, those that are switched off already and the data to a score for each name."""


def block_influence(
    model: nn.Module, blocks: Sequence[ResidualBlock], off: Sequence[ResidualBlock], calibration: Calibration
) -> dict[str, float]:
    """One minus the cosine of a block's input and output, averaged (Men et al., ShortGPT, 2024, arXiv 2403.03853).

    Of sequences (samples, positions, features) the cosine is that of a position's features, of all else that of a
    whole sample. The data are the calibration batches, or the example inputs where there are none.
    """
    sums = {block.name: [0.0, 0] for block in blocks}

    def hook(block: ResidualBlock) -> Any:
        def seen(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = passed_tensors(args, kwargs)[block.tensor]
            after = next(tensor for tensor in output_tensors(output) if tensor.is_floating_point())
            cosines = F.cosine_similarity(_vectors(before), _vectors(after), dim=1)
            total = sums[block.name]
            total[0] += float((1 - cosines).sum())
            total[1] += len(cosines)

        return seen

    batches = calibration.pairs() if calibration.batches is not None else [(calibration.example_inputs, None)]
    with ExitStack() as stack:
        for block in blocks:
            module = model.get_submodule(block.name)
            stack.callback(module.register_forward_hook(hook(block), with_kwargs=True).remove)
        stack.enter_context(switched_off(model, off))
        stack.enter_context(evaluating(model))
        for inputs, _ in in_turn(batches):
            assert inputs is not None
            run_batch(model, inputs)
    (totals,) = summed([torch.tensor(list(sums.values()), dtype=torch.float64).reshape(-1, 2)])
    return {name: total / max(count, 1) for name, (total, count) in zip(sums, totals.tolist(), strict=True)}


def loss_increase(
    model: nn.Module, blocks: Sequence[ResidualBlock], off: Sequence[ResidualBlock], calibration: Calibration
) -> dict[str, float]:
    """How much the mean loss of a sample rises when a block is switched off, beside those that are off already.

    Without labels the loss is half the squared distance to what the whole network returns.
    """
    samples = sum(sample_count(inputs) for inputs, _ in calibration.pairs())
    measure = measured_loss(model, calibration)
    with switched_off(model, off):
        before = measure(model)
    scores = {}
    for number, block in enumerate(blocks):
        with step(number, len(blocks), "block"), switched_off(model, [*off, block]):
            scores[block.name] = (measure(model) - before) / samples
    return scores


def at_random(
    model: nn.Module, blocks: Sequence[ResidualBlock], off: Sequence[ResidualBlock], calibration: Calibration
) -> dict[str, float]:
    """Seeded random numbers: the baseline to beat."""
    numbers = torch.rand(len(blocks), generator=calibration.generator, dtype=torch.float64)
    return {block.name: float(number) for block, number in zip(blocks, numbers, strict=True)}


def _vectors(tensor: Tensor) -> Tensor:
    """Rows to compare, in float64 where the device has it."""
    rows = tensor.flatten(0, 1) if tensor.dim() == _TOKENS else tensor.flatten(1) if tensor.dim() > 1 else tensor[None]
    return rows.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
