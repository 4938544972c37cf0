"""Neurons of snntorch, called once per step.

Each keeps its state in buffers that take their shape from the first input, also where forward passes the state along.
`snntorch.utils.reset` goes through all neurons that were ever constructed, and a copied neuron was not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from snntorch._neurons import alpha, lapicque, leaky, neurons, rleaky, rsynaptic, sconv2dlstm, slstm, synaptic
from torch import Tensor, nn

from prunecli.copying import copied

_WATCHED = (
    leaky.Leaky,
    lapicque.Lapicque,
    synaptic.Synaptic,
    alpha.Alpha,
    rleaky.RLeaky,
    rsynaptic.RSynaptic,
    slstm.SLSTM,
    sconv2dlstm.SConv2dLSTM,
)
_STATE = ("mem", "mem_prev", "syn", "syn_exc", "syn_inh", "spk")
_NEVER = 1e30
_STEPS = 8
"""So that a synapse with its own decay has passed its current on."""


class SNNTorch:
    """See `prunecli.measure.neuron_packages.base.NeuronPackage`."""

    def is_neuron(self, module: nn.Module) -> bool:
        return isinstance(module, _WATCHED)

    def is_unwatched(self, module: nn.Module) -> bool:
        own = type(module).__module__.startswith("snntorch._neurons") and type(module).__name__ != "RecurrentOneToOne"
        return own and not self.is_neuron(module)

    def spikes(self, module: nn.Module, output: Any) -> Tensor:
        spikes: Tensor = output[0] if isinstance(output, tuple) else output
        return (spikes != 0).to(spikes.dtype)  # graded spikes have a factor, which may be negative

    def takes_all_steps(self, module: nn.Module) -> bool:
        return False

    def reset(self, module: nn.Module) -> None:
        if not isinstance(module, _WATCHED):
            return
        for name in _STATE:
            before = getattr(module, name, None)
            if isinstance(before, Tensor):
                setattr(module, name, torch.zeros(0, device=before.device, dtype=before.dtype))

    @contextmanager
    def own_instances(self, model: nn.Module) -> Iterator[None]:
        before = neurons.SpikingNeuron.instances
        neurons.SpikingNeuron.instances = [m for m in model.modules() if isinstance(m, neurons.SpikingNeuron)]
        try:
            yield
        finally:
            neurons.SpikingNeuron.instances = before

    def adopt(self, model: nn.Module) -> None:
        known = {id(module) for module in neurons.SpikingNeuron.instances}
        own = (module for module in model.modules() if isinstance(module, neurons.SpikingNeuron))
        neurons.SpikingNeuron.instances.extend(module for module in own if id(module) not in known)

    def keeping_potentials(self, module: nn.Module) -> AbstractContextManager[None] | None:
        return nullcontext()

    def potentials(self, module: nn.Module, output: Any) -> Tensor:
        potentials: Any = module.mem
        return potentials  # type: ignore[no-any-return]

    def charged(self, module: nn.Module, args: tuple[Any, ...]) -> Generator[Tensor]:
        trial = copied(module)
        self.reset(trial)
        self.set_threshold(trial, _NEVER)
        trial.init_hidden = True  # type: ignore[assignment]
        for _ in range(_STEPS):
            trial.forward(args[0])  # without hooks
            yield trial.mem.detach()  # type: ignore[operator]

    def rest(self, module: nn.Module) -> float:
        return 0.0

    def threshold(self, module: nn.Module) -> float:
        threshold: Any = module.threshold
        return float(threshold.detach().flatten()[0])

    def set_threshold(self, module: nn.Module, value: float) -> None:
        module.threshold.detach().fill_(value)  # type: ignore[operator]
