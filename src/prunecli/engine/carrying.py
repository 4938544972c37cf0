"""Running a network over batches: one that remembers goes on where it stopped, if the batches go on."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from prunecli.inputs import call, logits, map_tensors, model_device


class Carrier:
    """Runs a network on one batch after another.

    Where batches are `contiguous`, as those of a text are, the network is called as `model(inputs, memory, carry=True)`
    and returns its scores and what it remembers, tensors in any containers: None before the first batch, and after
    each batch what the last call returned, cut off from its graph (truncated backpropagation through time). All other
    batches are passes of their own.

    Args:
        batches: What the network is going to be run on.
    """

    def __init__(self, batches: Any) -> None:
        self.carries = bool(getattr(batches, "contiguous", False))
        self._memory: Any = None

    def scores(self, model: nn.Module, inputs: Any) -> Tensor:
        """The network's scores for the next batch."""
        if not self.carries:
            return logits(call(model, inputs))
        # A state that was saved on a device is loaded on the CPU.
        memory = map_tensors(self._memory, lambda tensor: tensor.to(model_device(model)))
        scores, memory = model(inputs, memory, carry=True)
        self._memory = map_tensors(memory, Tensor.detach)
        return logits(scores)

    def forget(self) -> None:
        """Call before the first batch of a pass over the data."""
        self._memory = None

    def state(self) -> Any:
        """What the network remembers, which belongs to the state of a run."""
        return self._memory

    def restore(self, memory: Any) -> None:
        """Restores `state()`."""
        self._memory = memory
