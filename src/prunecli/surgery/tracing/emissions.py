"""Which spiking neurons output the channels of a group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from prunecli.measure.neurons import spiking_neurons
from prunecli.surgery.axes import Axis, Term, leaves
from prunecli.surgery.groups import ChannelGroup, Emission
from prunecli.surgery.tracing.labels import Followed, Label, Record


def with_emissions(
    model: nn.Module, followed: Followed, groups: list[ChannelGroup], index: Callable[[Axis, Term], Tensor]
) -> list[ChannelGroup]:
    """Groups with the neurons that their layers feed, such as those of queries, keys and values.

    Neurons further on output the same channels, but attention mixes queries, keys and values over tokens, so neurons
    behind it say little about one dimension of them. They count only if there are no others.

    Args:
        model: The network.
        followed: Its run.
        groups: Groups with their axes.
        index: Positions of an axis along a dimension.
    """
    neurons = {name: followed.outputs[name][0] for name in spiking_neurons(model) if name in followed.outputs}
    if not neurons:
        return groups
    made_by = {id(label): record for record in followed.records for label in record.outputs}
    complete = []
    for group in groups:
        candidates = tuple(
            Emission(name, dim, index(group.axis, term))
            for name, label in neurons.items()
            for dim, term in enumerate(label.dims)
            if group.axis is not None and group.axis in leaves(term)
        )
        producers = frozenset(group.modules("producer"))
        nearest = {emission.module for emission in candidates if _fed_by(producers, emission.module, neurons, made_by)}
        kept = tuple(emission for emission in candidates if emission.module in nearest or not nearest)
        complete.append(replace(group, emissions=kept))
    return complete


def _fed_by(
    producers: frozenset[str], neuron: str, neurons: Mapping[str, Label], made_by: Mapping[int, Record]
) -> bool:
    """Whether a neuron's output comes from one of these layers with no other neuron in between."""
    others = {id(label) for name, label in neurons.items() if name != neuron}
    waiting, seen = [neurons[neuron]], set(others)
    while waiting:
        label = waiting.pop()
        if id(label) in seen:
            continue
        seen.add(id(label))
        record = made_by.get(id(label))
        if record is None:
            continue
        if record.module in producers:
            return True
        waiting += record.inputs
    return False
