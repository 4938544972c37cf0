"""What a channel's spiking neurons do: how much they fire, and how informative that is.

Everything is measured at the neurons that output the channel, in one pass, as sums with one number per channel.
The score of a unit is the mean over its positions (of queries, keys and values, for a head dimension) and neurons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, Criterion, OwnShare
from prunecli.criteria.bn_scale import bn_scale
from prunecli.criteria.magnitude import l1
from prunecli.criteria.random import random
from prunecli.criteria.readers import exact
from prunecli.errors import MethodError
from prunecli.inputs import run_batch
from prunecli.measure.neurons import package_of, spiking_neurons, unwatched_neurons
from prunecli.modes import evaluating
from prunecli.naming import option
from prunecli.ranks import summed_by_name, together
from prunecli.surgery.groups import ChannelGroup

_WITHOUT_SPIKES: dict[str, Criterion] = {"l1": l1, "bn-scale": bn_scale, "random": random}
_UNSEEN = "no spiking neuron outputs its channels"


def spike(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Scores channels by the option `criterion`.

    - rate: mean of the spikes over steps, samples and positions (the original's averaged over steps alone); those of
      -1 count like others.
    - rate+v: that, plus the mean of |v|, the membrane potential after the reset (Li et al., ICML 2024, eq. 8).
    - entropy: -p log2 p - (1 - p) log2 (1 - p) of the rate p.
    - variance: mean over samples and positions of p (1 - p), where p is the rate over the steps.
    - singular: mean over samples of the nuclear norm of a channel's spikes as a matrix, steps by positions (after Wei
      et al., QP-SNN, ICLR 2025, who average over the steps first).
    - l1, bn-scale, random: do not use spikes; for comparison.

    Args:
        model: A spiking network in multi-step or single-step mode.
        groups: What to score.
        calibration: Inputs; the last three do not use them.

    Raises:
        MethodError: The network has no spiking neurons.
    """
    name = str(calibration.options.get("criterion", "rate"))
    if not spiking_neurons(model):
        raise MethodError(_none_to_watch(model))
    if name in _WITHOUT_SPIKES:
        return _WITHOUT_SPIKES[name](model, groups, calibration)
    sums = _gather(model, groups, calibration, name)
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        means = [
            sums[e.module, e.dim].mean(name)[e.index].mean(dim=1) for e in group.emissions if (e.module, e.dim) in sums
        ]
        scores[group.name] = torch.stack(means).mean(dim=0) if means else _UNSEEN
    return scores


def _none_to_watch(model: nn.Module) -> str:
    for name, kind in unwatched_neurons(model).items():
        return f"{name} is a {kind}, whose spikes cannot be watched; choose another method, for instance activation"
    return "the network has no spiking neurons; choose another method, for instance l1 or activation"


class _Sum:
    """The sum of a statistic of one neuron's channels, and the number of values in it."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor, count: int) -> None:
        self.total = self.total + exact(values)
        self.count += count

    def mean(self, criterion: str) -> Tensor:
        """The score of each channel, shape (channels,), float64 on the CPU."""
        assert isinstance(self.total, Tensor)
        mean = self.total.cpu() / self.count
        if criterion != "entropy":
            return mean
        mean = mean.clamp(max=1)  # where a neuron may spike twice in a step
        bits: Tensor = (torch.special.entr(mean) + torch.special.entr(1 - mean)) / math.log(2)
        return bits


def _gather(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration, criterion: str
) -> dict[tuple[str, int], _Sum]:
    dims: dict[str, set[int]] = {}  # a neuron between tokens outputs two kinds of channels
    for emission in (emission for group in groups for emission in group.emissions):
        dims.setdefault(emission.module, set()).add(emission.dim)
    sums = {(name, dim): _Sum() for name, watched in dims.items() for dim in watched}

    def watcher(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for dim in dims[name]:
                _STATISTICS[criterion](sums[name, dim], module, output, dim)

        return hook

    neurons = {name: model.get_submodule(name) for name in dims}
    with _watching(model, neurons, watcher, potentials=criterion == "rate+v"), torch.no_grad():
        for inputs, _ in OwnShare(calibration).pairs():
            run_batch(model, inputs)
    seen = {output: total for output, total in sums.items() if total.count}
    return _over_ranks(seen) if together() else seen


def _over_ranks(seen: Mapping[tuple[str, int], _Sum]) -> dict[tuple[str, int], _Sum]:
    """The sums over all processes."""
    named = {
        f"{name}:{dim}": torch.cat([torch.as_tensor(one.total).cpu(), torch.tensor([one.count])])
        for (name, dim), one in seen.items()
    }
    sums: dict[tuple[str, int], _Sum] = {}
    for key, values in summed_by_name(named).items():
        name, _, dim = key.rpartition(":")
        own = sums[name, int(dim)] = _Sum()
        own.total, own.count = values[:-1], int(values[-1])
    return sums


@contextmanager
def _watching(
    model: nn.Module,
    neurons: dict[str, nn.Module],
    watcher: Callable[[str], Callable[[nn.Module, Any, Any], None]],
    *,
    potentials: bool,
) -> Iterator[None]:
    """Evaluation mode, with a hook on every neuron; `potentials` makes them keep v of each step for one pass."""
    with ExitStack() as undo:
        undo.enter_context(evaluating(model))
        if potentials:
            _keep_potentials(neurons, undo)
        hooks = [module.register_forward_hook(watcher(name)) for name, module in neurons.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _keep_potentials(neurons: Mapping[str, nn.Module], undo: ExitStack) -> None:
    for name, module in neurons.items():
        keeping = package_of(module).keeping_potentials(module)
        if keeping is None:
            raise MethodError(
                f"{name} is a {type(module).__name__}, which does not keep the potentials rate+v needs; "
                f"choose another {option('criterion')}"
            )
        undo.enter_context(keeping)


def _rate(into: _Sum, module: nn.Module, output: Any, dim: int) -> None:
    spikes = _spikes(module, output)
    into.add(_over_all_but(spikes, dim), spikes.numel() // spikes.shape[dim])


def _rate_and_potential(into: _Sum, module: nn.Module, output: Any, dim: int) -> None:
    spikes, size = _spikes(module, output), package_of(module).potentials(module, output).abs()
    into.add(_over_all_but(spikes, dim) + _over_all_but(size, dim), spikes.numel() // spikes.shape[dim])


def _variance(into: _Sum, module: nn.Module, output: Any, dim: int) -> None:
    spikes = _spikes_of_all_steps(module, output)
    rate = spikes.mean(dim=0)
    into.add(_over_all_but(rate * (1 - rate), dim - 1), rate.numel() // rate.shape[dim - 1])


def _singular(into: _Sum, module: nn.Module, output: Any, dim: int) -> None:
    spikes = _spikes_of_all_steps(module, output)
    matrices = spikes.movedim(dim, 2).flatten(3).permute(1, 2, 0, 3) if spikes.dim() > 3 else _column(spikes, dim)
    gram = matrices @ matrices.transpose(-1, -2)  # steps by steps: small however many positions there are
    norms = torch.linalg.eigvalsh(exact(gram)).clamp_min(0).sqrt().sum(dim=-1)
    into.add(norms.sum(dim=0), len(norms))


def _column(spikes: Tensor, dim: int) -> Tensor:
    """(T, N, C) as matrices of one position, shape (N, C, T, 1)."""
    return spikes.movedim(dim, 2).permute(1, 2, 0).unsqueeze(-1)


def _over_all_but(values: Tensor, dim: int) -> Tensor:
    # Runs of memory first: one sum over all of these dimensions is twice as slow.
    inner = values.flatten(dim + 1).sum(dim=-1) if values.dim() > dim + 1 else values
    return inner.sum(dim=list(range(dim)))


def _spikes(module: nn.Module, output: Any) -> Tensor:
    return package_of(module).spikes(module, output).detach()


def _spikes_of_all_steps(module: nn.Module, output: Any) -> Tensor:
    if not package_of(module).takes_all_steps(module):
        raise MethodError(
            f"this criterion needs all steps of a {type(module).__name__} at once; use neurons that take all steps "
            f"(in spikingjelly: step mode m), or choose {option('criterion', 'rate')}"
        )
    return _spikes(module, output)


_STATISTICS: dict[str, Callable[[_Sum, nn.Module, Any, int], None]] = {
    "rate": _rate,
    "rate+v": _rate_and_potential,
    "entropy": _rate,
    "variance": _variance,
    "singular": _singular,
}
