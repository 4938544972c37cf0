"""Random scores: what every method has to beat at the same sparsity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration
from prunecli.criteria.weights.base import MaskableWeight, WeightMethod


def random_weights(
    model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration
) -> dict[str, Tensor | str]:
    """Uniform numbers, the same for the same seed on every device."""
    return {
        weight.name: torch.rand(weight.parameter.shape, generator=calibration.generator, dtype=torch.float64)
        for weight in weights
    }


RANDOM = WeightMethod(random_weights)
