"""Which widths the groups of a network may have, and what these cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunecli.inputs import Inputs
from prunecli.methods.allocation import allowed_units
from prunecli.methods.layer_costs import LayerCosts, thinned
from prunecli.methods.params import StructuralParams
from prunecli.phases import phase
from prunecli.surgery.groups import ChannelGroup


@dataclass(frozen=True)
class Widths:
    """Widths of groups.

    Attributes:
        allowed: Numbers of units that each group may keep, ascending.
        chosen: The same where the target is time, and these are fewer than rounding and bounds allow: those that were
            timed and, unless rounding was asked for, that this machine runs fast; else empty.
        costs: What they cost; None where nobody asks.
    """

    allowed: Mapping[str, Sequence[int]]
    chosen: Mapping[str, Sequence[int]]
    costs: LayerCosts | None


@phase("measure", undisturbed=True)
def widths_of(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    params: StructuralParams,
    target: str | None,
    inputs: Inputs,
    dense: Mapping[str, int],
) -> Widths:
    """Finds out which widths groups may have.

    Args:
        network: The present network.
        groups: Its groups.
        params: Scope, rounding and bounds. Without a `round_to`, widths for a target of time are those that are fast.
        target: The figure that the target is for, such as "latency"; None for a ratio.
        inputs: Inputs that the network accepts.
        dense: Channels of each group before anything was removed.
    """
    allowed = allowed_units(groups, params, dense)
    timed = target == "latency"
    if params.scope != "measured" and not (timed and not params.round_to):
        return Widths(allowed, {}, None)
    if timed:
        allowed = {name: thinned(numbers) for name, numbers in allowed.items()}
    kind = {None: "channels", "params": "params", "latency": "latency"}.get(target, "macs")
    costs = LayerCosts(network, groups, kind, inputs, allowed)
    if timed and not params.round_to:
        allowed = {name: costs.worthwhile(name, numbers) for name, numbers in allowed.items()}
    return Widths(allowed, allowed if timed else {}, costs)
