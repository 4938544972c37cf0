"""Neurons of spikingjelly, which keep their state between calls and take one step or all."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn

_NEVER = 1e30
_KEPT = "store_v_seq"


class SpikingJelly:
    """See `prunecli.measure.neuron_packages.base.NeuronPackage`."""

    def is_neuron(self, module: nn.Module) -> bool:
        return isinstance(module, (neuron.BaseNode, neuron.SimpleBaseNode))

    def is_unwatched(self, module: nn.Module) -> bool:
        return type(module).__module__.startswith(neuron.__name__) and not self.is_neuron(module)

    def spikes(self, module: nn.Module, output: Any) -> Tensor:
        spikes: Tensor = output
        # The -1 of a ternary neuron is a spike too.
        return spikes.abs() if isinstance(module, (neuron.TernaryIFNode, neuron.TernaryLIFNode)) else spikes

    def takes_all_steps(self, module: nn.Module) -> bool:
        return bool(module.step_mode == "m")

    def reset(self, module: nn.Module) -> None:
        if isinstance(module, base.MemoryModule):
            module.reset()

    def own_instances(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def adopt(self, model: nn.Module) -> None:
        pass

    def keeping_potentials(self, module: nn.Module) -> AbstractContextManager[None] | None:
        if hasattr(module, _KEPT):
            return _keeping(module)
        return None if self.takes_all_steps(module) else nullcontext()

    def potentials(self, module: nn.Module, output: Any) -> Tensor:
        potentials: Any = module.v_seq if self.takes_all_steps(module) else module.v
        return potentials  # type: ignore[no-any-return]

    def charged(self, module: nn.Module, args: tuple[Any, ...]) -> Generator[Tensor]:
        before: Any = self.threshold(module)
        self.set_threshold(module, _NEVER)
        try:
            for step in args[0] if self.takes_all_steps(module) else args[0][None]:
                module.single_step_forward(step)  # type: ignore[operator]
                yield module.v.detach()  # type: ignore[operator]
        finally:
            module.reset()  # type: ignore[operator]
            self.set_threshold(module, before)

    def rest(self, module: nn.Module) -> float:
        return float(module.v_reset or 0.0)  # type: ignore[arg-type]

    def threshold(self, module: nn.Module) -> float:
        threshold: Any = module.v_threshold
        return float(threshold.detach() if isinstance(threshold, Tensor) else threshold)

    def set_threshold(self, module: nn.Module, value: float) -> None:
        if isinstance(module.v_threshold, Tensor):  # a learned one
            module.v_threshold.detach().fill_(value)
        else:
            module.v_threshold = value  # type: ignore[assignment]


@contextmanager
def _keeping(module: nn.Module) -> Iterator[None]:
    before = getattr(module, _KEPT)
    setattr(module, _KEPT, True)
    try:
        yield
    finally:
        setattr(module, _KEPT, before)
