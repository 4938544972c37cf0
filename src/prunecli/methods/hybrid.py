"""Selecting units of layers in which spiking units and others stand side by side.

This is the second of three steps (HSTNN, Nature Communications 2024, s41467-024-51641-x): adaptation trains a network
with more units of both kinds than it shall have, selection keeps the most important ones of each kind in the
composition that is wanted, restoration trains on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace

from torch import Tensor, nn

from prunecli.criteria.base import Calibration, Criterion
from prunecli.criteria.index import CRITERIA
from prunecli.errors import MethodError, unknown
from prunecli.methods.hybrid_params import HybridParams
from prunecli.methods.params import TARGETS, StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.naming import option
from prunecli.surgery.groups import ChannelGroup

_SHARED = frozenset(field.name for field in fields(StructuralParams))
_DECIDED = ("ratio", *TARGETS, "layer_ratio", "scope", "normalise", "round_to", "min_width", "max_ratio")
"""Parameters of other methods that `keep_fraction` and `snn_fraction` take the place of."""


def hybrid(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Scores by the criterion in the options, which has its own defaults.

    Raises:
        MethodError: There is no criterion of that name.
    """
    name = str(calibration.options["criterion"])
    if name not in CRITERIA.names:
        raise MethodError(unknown("criterion", name, CRITERIA.names, see="prune methods"))
    spec = get_structural(name)
    criterion: Criterion = spec.load()
    options = asdict(spec.params_class()) | {key: value for key, value in calibration.options.items() if key in _SHARED}
    return criterion(model, groups, replace(calibration, options=options))


def composed(groups: Sequence[ChannelGroup], params: StructuralParams) -> dict[str, float]:
    """The share that every group loses, so that each layer keeps the composition that is asked for.

    Args:
        groups: Those that may shrink; groups that spiking neurons emit are spiking, all others are not.
        params: Of this method.

    Raises:
        MethodError: A parameter has no effect here, no layer has units of both kinds, or a layer has too few.
    """
    assert isinstance(params, HybridParams)
    for field in fields(HybridParams):
        if field.name in _DECIDED and getattr(params, field.name) not in (field.default, {}, "global", "isomorphic"):
            raise MethodError(
                f"{option(field.name)} has no effect on hybrid networks: {option('keep_fraction')} says how many units "
                f"stay, and {option('snn_fraction')} how many of them spike"
            )
    ratios: dict[str, float] = {}
    for layer, (spiking, others) in _layers(groups).items():
        total = sum(group.units for group in (*spiking, *others))
        kept = max(2, round(params.keep_fraction * total))
        spikes = min(kept - 1, max(1, round(params.snn_fraction * kept)))
        ratios |= _shares(layer, "spiking", spiking, spikes) | _shares(layer, "other", others, kept - spikes)
    return ratios


def _layers(groups: Sequence[ChannelGroup]) -> Mapping[str, tuple[list[ChannelGroup], list[ChannelGroup]]]:
    """Spiking and other groups of every layer: the innermost module that holds both kinds.

    Raises:
        MethodError: The network has units of one kind only.
    """
    for spikes, kind in ((True, "spiking"), (False, "other than spiking")):
        if not any(bool(group.emissions) == spikes for group in groups):
            raise MethodError(
                f"the network has no {kind} units that may shrink, and so no composition: {option('snn_fraction')} is "
                "for layers with both kinds, such as those of lm:hybrid"
            )
    layers: dict[str, tuple[list[ChannelGroup], list[ChannelGroup]]] = {}
    for group in groups:
        names = group.name.split(".")
        around = (".".join(names[:end]) for end in range(len(names) - 1, 0, -1))
        for module in around:
            inside = [other for other in groups if other.name.startswith(f"{module}.")]
            if len({bool(other.emissions) for other in inside}) == 2:
                layers.setdefault(module, ([], []))[0 if group.emissions else 1].append(group)
                break
    return layers


def _shares(layer: str, kind: str, groups: Sequence[ChannelGroup], kept: int) -> dict[str, float]:
    present = sum(group.units for group in groups)
    if kept > present:
        raise MethodError(
            f"{layer}: {kept} {kind} units are asked for, and it has {present}; lower {option('keep_fraction')}, or "
            f"move {option('snn_fraction')} towards what the layer has"
        )
    return {group.name: 1 - kept / present for group in groups}
