"""A prune stage whose network stays on the disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from prunecli.copying import is_large
from prunecli.errors import RecipeError, ResourceError
from prunecli.measure.free_memory import free_memory_bytes
from prunecli.methods.params import StructuralParams
from prunecli.models.offloading import put_on_disk
from prunecli.pipeline.state import RunState
from prunecli.ranks import together
from prunecli.recipe.exclusions import refuse_in_memory
from prunecli.recipe.schema import PruneStage
from prunecli.stored import Scratch

_MORE = 1.5
"""Times the weights that pruning takes beside them, by weights alone and as measured (docs/large-models.md)."""


@contextmanager
def on_the_disk(space: RunState, stage: PruneStage, out: Path) -> Iterator[None]:
    """Leaves the weights of the current network in their files for a stage with `--offload disk`.

    Args:
        space: The run.
        stage: The stage.
        out: The checkpoint that it will write; what is computed of weights goes to a file beside it.

    Raises:
        RecipeError: What is asked for needs all weights in memory.
    """
    if stage.offload == "none":
        yield
        return
    refuse_in_memory(dataclasses.asdict(stage))
    if together():
        raise RecipeError("offload: disk works in one process; run the recipe without --nproc")
    if space.device.type != "cpu":
        space.sink.note("--offload disk computes on the CPU")
    device, space.device = space.device, torch.device("cpu")
    space.scratch = Scratch(out.parent)
    if space.loaded is not None:  # an earlier stage of the run left it in memory
        put_on_disk(space.loaded.model, space.scratch)
    try:
        yield
    finally:
        space.scratch, space.device = None, device


def check_memory(space: RunState, stage: PruneStage) -> None:
    """Compares what pruning the current network will take with the memory there is, before any work.

    Args:
        space: The run; its network is loaded, but may be widened yet.
        stage: The stage.

    Raises:
        ResourceError: The smaller network alone takes more.
    """
    loaded, free = space.stored_model(), free_memory_bytes()
    if free is None or space.scratch is not None or not is_large(loaded.model):
        return
    run = sum(tensor.numel() * _width(tensor, as_stored=space.as_stored) for tensor in loaded.model.parameters())
    narrow = any(
        _width(tensor, as_stored=space.as_stored) > tensor.element_size() for tensor in loaded.model.parameters()
    )
    widened = run if narrow else 0
    least, usual = widened + _least_left(stage) * run, widened + _MORE * run
    remedy = "--offload disk leaves weights in their files and has one at a time in memory"
    left = f"GB of memory, and {free / 1e9:.1f} GB are free; {remedy}"
    if least > free:
        raise ResourceError(f"{loaded.name}: pruning it takes at least {least / 1e9:.1f} {left}")
    if usual > free:
        space.sink.warn(f"{loaded.name}: pruning it takes about {usual / 1e9:.1f} {left}")


def _least_left(stage: PruneStage) -> float:
    """The least share of the weights that may be left: most have channels on both sides."""
    given = stage.params
    by_ratio = given.get("retention", "ratio") == "ratio"
    if not by_ratio or any(given.get(name) for name in ("params", "macs", "latency", "layer_ratio")):
        return 0.0
    ratio = given.get("ratio", StructuralParams.ratio)
    return float((1 - ratio) ** 2)


def _width(tensor: Tensor, *, as_stored: bool) -> int:
    """Bytes of each number of a tensor while a network runs."""
    return tensor.element_size() if as_stored else max(tensor.element_size(), torch.float32.itemsize)
