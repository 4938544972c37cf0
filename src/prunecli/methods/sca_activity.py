"""How active channels are during training: their spikes and potentials, or the size of their activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunecli.copying import converted
from prunecli.criteria.readers import UNSEEN, by_unit, exact, readers_of
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, cast_inputs, run_batch
from prunecli.measure.neurons import package_of, spiking_neurons
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.taps import channels_last, layer_input

Running = dict[str, Tensor]
"""Sums of the means of all calls, by what was watched."""


class Activity(Protocol):
    """Watches a network and scores its channels.

    Attributes:
        unseen: Reasons by name for the groups that it cannot score.
    """

    unseen: dict[str, str]

    def watch(self, see: Callable[[str, Tensor], None], undo: ExitStack) -> None:
        """From now on, until `undo` is closed, passes the mean of every call to `see`, with what was watched."""
        ...

    def scores(self, means: Running) -> dict[str, Tensor]:
        """Scores by group name, shape (units,), float64 on the CPU, from means by what was watched."""
        ...


class SpikeActivity:
    """Mean over steps, samples and positions of spikes + |v|, v after the reset, at the neurons of a group.

    (Li et al., ICML 2024, eq. 8.)

    Args:
        model: The network that is trained.
        groups: What to score.

    Raises:
        MethodError: A neuron does not keep the potentials.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        reason = "no spiking neuron outputs its channels"
        self.unseen: dict[str, str] = {group.name: reason for group in groups if not group.emissions}
        self._groups = [group for group in groups if group.emissions]
        names = dict.fromkeys(emission.module for group in self._groups for emission in group.emissions)
        self._neurons = {name: model.get_submodule(name) for name in names}
        for name, module in self._neurons.items():
            if package_of(module).keeping_potentials(module) is None:
                raise MethodError(
                    f"{name} is a {type(module).__name__}, which does not keep the potentials that sca needs; use "
                    "another method, for instance spike"
                )

    def watch(self, see: Callable[[str, Tensor], None], undo: ExitStack) -> None:
        """See `Activity`; watched are outputs along a dimension, as "neuron:dimension"."""
        dims: dict[str, set[int]] = {}
        for emission in (emission for group in self._groups for emission in group.emissions):
            dims.setdefault(emission.module, set()).add(emission.dim)

        def watcher(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                package = package_of(module)
                activity = package.spikes(module, output).detach() + package.potentials(module, output).detach().abs()
                for dim in dims[name]:
                    see(f"{name}:{dim}", _mean_of_channels(activity, dim))

            return hook

        for name, module in self._neurons.items():
            keeping = package_of(module).keeping_potentials(module)
            assert keeping is not None
            undo.enter_context(keeping)
            undo.callback(module.register_forward_hook(watcher(name)).remove)

    def scores(self, means: Running) -> dict[str, Tensor]:
        """See `Activity`: the mean over a unit's positions and neurons."""
        return {
            group.name: torch.stack(
                [means[f"{e.module}:{e.dim}"].cpu()[e.index].mean(dim=1) for e in group.emissions]
            ).mean(dim=0)
            for group in self._groups
        }


class ReaderActivity:
    """Mean of |activation| where the layers that read a group take it in: behind the activation function.

    Args:
        model: A network without spiking neurons.
        groups: What to score.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self._model = model
        self._readers: dict[str, list[Member]] = {group.name: readers_of(model, group) for group in groups}
        self.unseen: dict[str, str] = {name: UNSEEN for name, readers in self._readers.items() if not readers}

    def watch(self, see: Callable[[str, Tensor], None], undo: ExitStack) -> None:
        """See `Activity`; watched are the inputs of layers."""

        def watcher(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                taken_in = layer_input(args, kwargs)
                if taken_in is not None:
                    sizes = channels_last(module, taken_in.detach().abs())
                    see(name, _mean_of_channels(sizes, sizes.dim() - 1))

            return hook

        for name in dict.fromkeys(member.module for readers in self._readers.values() for member in readers):
            handle = self._model.get_submodule(name).register_forward_pre_hook(watcher(name), with_kwargs=True)
            undo.callback(handle.remove)

    def scores(self, means: Running) -> dict[str, Tensor]:
        """See `Activity`: the mean over a unit's positions and readers."""
        scores = {}
        for group, readers in self._readers.items():
            own = []
            for member in readers:
                values = means[member.module].cpu()
                total, count = (by_unit(self._model, member, each) for each in (values, torch.ones_like(values)))
                own.append(total / count)
            if own:
                scores[group] = torch.stack(own).mean(dim=0)
        return scores


def activity_of(model: nn.Module, groups: Sequence[ChannelGroup]) -> Activity:
    """What is watched in a network: spikes, or activations where it has no spiking neurons."""
    return SpikeActivity(model, groups) if spiking_neurons(model) else ReaderActivity(model, groups)


def refuse_restless_neurons(model: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs) -> None:
    """Refuses neurons that fire without any input, because a closed channel would go on spiking.

    Args:
        model: The network; not changed.
        groups: What is to be gated in front of its neurons.
        inputs: Inputs the network accepts.

    Raises:
        MethodError: There is such a neuron.
    """
    names = dict.fromkeys(emission.module for group in groups for emission in group.emissions)
    probe, peaks = converted(model, torch.float32).eval(), dict[str, float]()

    def watcher(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if name not in peaks:
                silence = (torch.zeros_like(args[0]), *args[1:])
                peaks[name] = max(float(step.max()) for step in package_of(module).charged(module, silence))

        return hook

    for name in names:
        probe.get_submodule(name).register_forward_pre_hook(watcher(name))
    with torch.no_grad():
        run_batch(probe, cast_inputs(inputs, device="cpu", dtype=torch.float32))
    for name, peak in peaks.items():
        neuron = probe.get_submodule(name)
        threshold = package_of(neuron).threshold(neuron)
        rest = package_of(neuron).rest(neuron)
        if max(peak, rest) >= threshold:
            raise MethodError(
                f"{name} is a {type(neuron).__name__} that fires without input (its potential gets to "
                f"{max(peak, rest):g}, the threshold is {threshold:g}), so closing its channels would not silence "
                "them; lower v_reset or raise the threshold"
            )


def _mean_of_channels(values: Tensor, dim: int) -> Tensor:
    """Shape (channels,), float64: the mean over all other dimensions."""
    inner = values.flatten(dim + 1).mean(dim=-1) if values.dim() > dim + 1 else values
    return exact(inner.mean(dim=list(range(dim))) if dim else inner)
