"""Where parameters, multiply-accumulates and time of a network went: its parts beside those of the dense network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from prunecli.checkpoint.manifest import Manifest
from prunecli.measure.counts import module_macs
from prunecli.measure.layer_times import time_layers
from prunecli.models.catalog import build_dense
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.stages.compare_networks import recipe_of
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import Recipe
from prunecli.report.page_plots import Part

_MOST_PARTS = 20
_ITSELF = "(network itself)"
"""What belongs to the network and to no module in it: of a network with parameters of its own."""
_ROUNDS = 3
"""Turns in which both networks are timed; of each layer the fastest pass counts."""


@dataclass(frozen=True)
class Parts:
    """Parts of a network and what they need.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates of one sample.
        seconds: Time of one sample, by layers that are timed alone. What happens between them is that of the network
            itself if it has parameters of its own, and missing otherwise.
        device: Where it was timed.
    """

    params: tuple[Part, ...]
    macs: tuple[Part, ...]
    seconds: tuple[Part, ...]
    device: str


def measure_parts(path: Path, manifest: Manifest, sink: Sink) -> Parts:
    """Loads a checkpoint and builds the dense network, and measures the parts of both.

    Args:
        path: The checkpoint.
        manifest: Its manifest.
        sink: Receives notes.

    Raises:
        PruneError: The network cannot be built or does not run.
    """
    space = Workspace(recipe_of(path, Recipe()), sink)
    pruned, example = space.model().model, space.inputs.example()
    dense = build_dense(manifest.architecture)
    networks = (dense, pruned)
    names = part_names(pruned, tuple(block.name for block in manifest.blocks))
    with space.inputs.running():
        macs = [_leaves(network, module_macs(network, example)) for network in networks]
        seconds: list[dict[str, float]] = [{}, {}]
        for _ in range(_ROUNDS):
            for times, network in zip(seconds, networks, strict=True):
                for name, taken in time_layers(network, example).seconds.items():
                    times[name] = min(taken, times.get(name, taken))
    params = [_own_parameters(network) for network in networks]
    by_part = [_by_part(names, before, after) for before, after in (params, macs, seconds)]
    return Parts(by_part[0], by_part[1], by_part[2], str(space.device))


def part_names(network: nn.Module, removed: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of modules that the layers of a network belong to, at the depth that gives most parts, up to a bound.

    Args:
        network: The network.
        removed: Blocks that were taken out of lists, whose entries have other names in the dense network.
    """
    layers = [name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]
    deepest = min((name.count(".") for name in removed), default=max((n.count(".") + 1 for n in layers), default=0))
    best: tuple[str, ...] = ()
    for depth in range(1, deepest + 1):
        names = tuple(dict.fromkeys(".".join(name.split(".")[:depth]) for name in layers))
        if len(names) > _MOST_PARTS and best:
            break
        best = names
    return best[:_MOST_PARTS] if best else ("",)


def _by_part(names: Sequence[str], before: Mapping[str, float], after: Mapping[str, float]) -> tuple[Part, ...]:
    """Sums by part, the rest last."""
    sums = [_sums(names, figures) for figures in (before, after)]
    order = [*names, "everything else"] if names != ("",) else ["everything else"]
    parts = [Part(name or _ITSELF, sums[0].get(name, 0.0), sums[1].get(name, 0.0)) for name in order]
    return tuple(part for part in parts if part.before or part.after)


def _sums(names: Sequence[str], figures: Mapping[str, float]) -> dict[str, float]:
    sums: dict[str, float] = {}
    known = set(names)
    for name, value in figures.items():
        words = name.split(".")
        prefixes = (".".join(words[:length]) for length in range(len(words), 0, -1))
        part = next((prefix for prefix in prefixes if prefix in known), "everything else")
        sums[part] = sums.get(part, 0.0) + value
    return sums


def _own_parameters(network: nn.Module) -> dict[str, float]:
    """Parameters of each module without those of its children; tied ones count once."""
    counted: set[int] = set()
    own: dict[str, float] = {}
    for name, module in network.named_modules():
        new = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted |= {id(parameter) for parameter in new}
        own[name] = float(sum(parameter.numel() for parameter in new))
    return own


def _leaves(network: nn.Module, totals: Mapping[str, int]) -> dict[str, float]:
    """Figures of modules without those of their children."""
    names = [name for name, _ in network.named_modules() if name in totals]  # totals also name the class of the whole
    own = {name: float(totals[name]) for name in names}
    for name in names:
        if name:
            parent = name.rpartition(".")[0]
            while parent and parent not in own:
                parent = parent.rpartition(".")[0]
            own[parent] = own.get(parent, 0.0) - totals[name]
    return {name: max(value, 0.0) for name, value in own.items()}
