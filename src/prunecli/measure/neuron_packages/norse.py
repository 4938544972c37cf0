"""Neurons of norse, which return spikes and state and keep nothing between calls."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from norse.torch.module import snn
from torch import Tensor, nn

from prunecli.copying import copied

_ALL_STEPS = (snn.SNN, snn.SNNRecurrent)
_ONE_STEP = (snn.SNNCell, snn.SNNRecurrentCell)
_THRESHOLD = "v_th"
_NEVER = 1e30
_STEPS = 8
"""A current reaches the membrane one step after the synapse, and raises it by a tenth in each."""


class Norse:
    """See `prunecli.measure.neuron_packages.base.NeuronPackage`."""

    def is_neuron(self, module: nn.Module) -> bool:
        return isinstance(module, (*_ALL_STEPS, *_ONE_STEP)) and _parameters(module) is not None

    def is_unwatched(self, module: nn.Module) -> bool:
        fires = hasattr(getattr(module, "p", None), "v_thresh")  # conductance-based neurons
        return type(module).__module__.startswith("norse.torch.module") and fires

    def spikes(self, module: nn.Module, output: Any) -> Tensor:
        spikes: Tensor = output[0]
        return spikes

    def takes_all_steps(self, module: nn.Module) -> bool:
        return isinstance(module, _ALL_STEPS)

    def reset(self, module: nn.Module) -> None:
        pass  # no state

    def own_instances(self, model: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def adopt(self, model: nn.Module) -> None:
        pass

    def keeping_potentials(self, module: nn.Module) -> AbstractContextManager[None] | None:
        return None if self.takes_all_steps(module) else nullcontext()

    def potentials(self, module: nn.Module, output: Any) -> Tensor:
        return _potentials(output[1])

    def charged(self, module: nn.Module, args: tuple[Any, ...]) -> Generator[Tensor]:
        trial, state = copied(module), None
        self.set_threshold(trial, _NEVER)
        for step in args[0].split(1) if self.takes_all_steps(module) else [args[0]] * _STEPS:
            _, state = trial.forward(step, state)  # without hooks
            yield _potentials(state).detach()

    def rest(self, module: nn.Module) -> float:
        return float(getattr(_parameters(module), "v_leak", 0.0))

    def threshold(self, module: nn.Module) -> float:
        return float(torch.as_tensor(getattr(_parameters(module), _THRESHOLD)).detach().flatten()[0])

    def set_threshold(self, module: nn.Module, value: float) -> None:
        module.p = _with_threshold(module.p, value)


def _parameters(module: nn.Module) -> Any:
    """The tuple with the threshold; None without one."""
    return _holder(getattr(module, "p", None), _THRESHOLD)


def _potentials(state: Any) -> Tensor:
    potentials: Tensor = _holder(state, "v").v
    return potentials


def _holder(values: Any, name: str) -> Any:
    """The tuple with this field: neurons with a refractory period keep those of plain ones inside theirs."""
    inner = (values, *(values if isinstance(values, tuple) else ()))
    return next((each for each in inner if isinstance(each, tuple) and hasattr(each, name)), None)


def _with_threshold(parameters: Any, value: float) -> Any:
    if hasattr(parameters, _THRESHOLD):
        before = torch.as_tensor(parameters.v_th, dtype=torch.float32)
        return parameters._replace(v_th=torch.full_like(before, value))
    inner = next(name for name in parameters._fields if hasattr(getattr(parameters, name), _THRESHOLD))
    return parameters._replace(**{inner: _with_threshold(getattr(parameters, inner), value)})
