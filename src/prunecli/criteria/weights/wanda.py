"""Weights times the norms of their inputs, after Sun et al. (A Simple and Effective Pruning Approach for LLMs)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prunecli.criteria.base import Calibration, OwnShare
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod
from prunecli.criteria.weights.inputs import UNSEEN, over_ranks, watch_inputs, why_unwatched


def wanda_weights(
    model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration
) -> dict[str, Tensor | str]:
    """|w_ij| ||x_j||_2 over all calibration data; x_j of a convolution is one channel at one kernel position."""
    squares: dict[str, Tensor] = {}

    def see(weight: MaskableWeight, inputs: Tensor) -> None:
        total = inputs.square().sum(dim=1)
        squares[weight.name] = squares[weight.name] + total if weight.name in squares else total

    watch_inputs(model, weights, OwnShare(calibration), see)
    squares = over_ranks(squares)
    scores: dict[str, Tensor | str] = {}
    for weight in weights:
        if weight.name in squares:
            norms = squares[weight.name].sqrt().unsqueeze(1)
            scores[weight.name] = weight.restored(weight.blocks(weight.values().to(norms.device).abs()) * norms)
        else:
            scores[weight.name] = why_unwatched(weight) or UNSEEN
    return scores


WANDA = WeightMethod(wanda_weights, scope="row")
