"""Holding masked weights at zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Masks
from prunecli.engine.divided import is_sharded, placed
from prunecli.engine.hooks import Hook, Training


class HoldZeros(Hook):
    """Keeps weights that are zero when training begins at zero.

    Gradients are masked, so that zeros do not count in moments, and weights once more after the step: weight decay
    and moments from before would move them.

    Args:
        network: The network that is trained.
        names: Its parameters with masked weights.
    """

    name = "hold-zeros"
    works_sharded = True

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self._network, self._names = network, names
        # Now: what prunes while it trains computes weights from something else later.
        self._parameters = [network.get_parameter(name) for name in names]
        self._held: list[tuple[nn.Parameter, Tensor]] = []

    def begin(self, training: Training) -> None:
        """Notes which weights are zero."""
        if is_sharded(self._network):  # which has other parameters than before it was divided
            self._parameters = [self._network.get_parameter(name) for name in self._names]
        self._held = [(parameter, parameter.detach() != 0) for parameter in self._parameters]

    def before_step(self) -> None:
        """Masks gradients."""
        for parameter, mask in self._held:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def after_step(self) -> None:
        """Masks weights."""
        with torch.no_grad():
            for parameter, mask in self._held:
                parameter.mul_(mask)

    def state(self) -> dict[str, Tensor]:
        """The masks: weights that became zero by chance are free."""
        return {str(index): mask for index, (_, mask) in enumerate(self._held)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restores the masks."""
        self._held = [
            (parameter, placed(state[str(index)].to(parameter.device), parameter))
            for index, (parameter, _) in enumerate(self._held)
        ]


def holding(network: nn.Module, masks: Masks | None) -> list[Hook]:
    """The hooks that hold what is masked in a network while it is trained; masks of spikes hold by themselves."""
    return [HoldZeros(network, masks.weights)] if masks is not None and masks.weights else []
