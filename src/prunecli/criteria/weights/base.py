"""What methods for single weights take and return."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.criteria.base import Calibration
from prunecli.sparsity.choosing import Goal, Scope
from prunecli.surgery.taps import experts_begin_with_inputs, is_flipped_linear


@dataclass(frozen=True, eq=False)
class MaskableWeight:
    """The weight of a convolution or linear layer, an input projection of attention, or weights of experts.

    Attributes:
        name: Name of the parameter.
        modules: Modules that hold it: several, if it is tied.
        module: The first of them.
        parameter: The parameter itself.
    """

    name: str
    modules: tuple[str, ...]
    module: nn.Module
    parameter: nn.Parameter

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for other layers. Experts are groups of their own."""
        if self._of_experts:
            return len(self.parameter)
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    @property
    def transposed(self) -> bool:
        """Whether it begins with its inputs, as that of a transposed convolution."""
        return isinstance(self.module, _ConvTransposeNd) or is_flipped_linear(self.module)

    @property
    def _of_experts(self) -> bool:
        return experts_begin_with_inputs(self.module) is not None

    @property
    def inputs(self) -> int:
        """Input channels that one output reads."""
        if self._of_experts:
            return self.parameter.shape[1 if experts_begin_with_inputs(self.module) else 2]
        return self.parameter.shape[0] // self.groups if self.transposed else self.parameter.shape[1]

    def blocks(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (groups, outputs, inputs), where inputs are kernel position by channel."""
        if self._of_experts:
            return tensor.transpose(1, 2) if experts_begin_with_inputs(self.module) else tensor
        first, second = tensor.shape[:2]
        kernel = math.prod(tensor.shape[2:])
        grouped = tensor.reshape(self.groups, first // self.groups, second, kernel)
        # Channels come last, so that patterns run along them.
        order = (0, 2, 3, 1) if self.transposed else (0, 1, 3, 2)
        return grouped.permute(order).flatten(2)

    def restored(self, blocks: Tensor) -> Tensor:
        """The opposite of `blocks`."""
        if self._of_experts:
            return blocks.transpose(1, 2) if experts_begin_with_inputs(self.module) else blocks
        first, second = self.parameter.shape[:2]
        kernel = math.prod(self.parameter.shape[2:])
        parted = blocks.reshape(*blocks.shape[:2], kernel, self.inputs)
        order = (0, 3, 1, 2) if self.transposed else (0, 1, 3, 2)
        return parted.permute(order).reshape(first, second, *self.parameter.shape[2:])

    def values(self) -> Tensor:
        """The weight in float64, on the CPU where the device has none."""
        weight = self.parameter.detach()
        return weight.cpu().double() if weight.device.type == "mps" else weight.double()

    def scored(self, scores: Tensor) -> Tensor:
        """Scores of the weight's shape as blocks, with -inf for what is zero already."""
        gone = (self.parameter.detach() == 0).to(scores.device)
        return self.blocks(scores.masked_fill(gone, -torch.inf)).contiguous()

    def mask(self, keep: Tensor) -> None:
        """Sets all others than the weights in `keep`, given as blocks, to zero."""
        mask = self.restored(keep).to(self.parameter.device)
        with torch.no_grad():
            # Not multiplied: an infinite weight times 0 is not a number.
            self.parameter.masked_fill_(~mask, 0.0)


class WeightScore(Protocol):
    """Scores single weights; those with low scores go first."""

    def __call__(
        self, model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration
    ) -> dict[str, Tensor | str]:
        """Returns, by parameter name, scores in the weight's shape, or the reason why it cannot be ranked."""
        ...


class WeightSolver(Protocol):
    """Chooses weights and adjusts the others."""

    def __call__(
        self, model: nn.Module, weights: Sequence[MaskableWeight], calibration: Calibration, goal: Goal
    ) -> dict[str, str]:
        """Changes weights in place; returns, by parameter name, why some were left alone."""
        ...


@dataclass(frozen=True)
class WeightMethod:
    """What `MethodSpec.load` returns in the family "sparse".

    Attributes:
        score: Ranks weights.
        solve: Or: chooses weights, layer by layer, and adjusts the others.
        scope: What its scores compare in, as in its paper.
        rounds: How often it ranks again within a step, with exponentially fewer weights each time.
        needs_labels: Whether images have to have labels.
    """

    score: WeightScore | None = None
    solve: WeightSolver | None = None
    scope: Scope = "global"
    rounds: int = 1
    needs_labels: bool = False


def by_name(weights: Sequence[MaskableWeight], model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The same parameters in a copy of the network."""
    return {weight.name: model.get_parameter(weight.name) for weight in weights}
