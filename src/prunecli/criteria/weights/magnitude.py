"""Magnitude, after Han et al. (Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prunecli.criteria.base import Calibration
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod


def magnitude(model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration) -> dict[str, Tensor | str]:
    """|w|."""
    return {weight.name: weight.values().abs() for weight in weights}


MAGNITUDE = WeightMethod(magnitude)
