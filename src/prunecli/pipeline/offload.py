"""A prune stage whose network stays on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prunecli.errors import RecipeError
from prunecli.models.offloading import put_on_disk
from prunecli.pipeline.state import RunState
from prunecli.recipe.schema import PruneStage
from prunecli.stored import Scratch


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
    _check(stage)
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


def _check(stage: PruneStage) -> None:
    """Checks that weights may stay on the disk.

    Raises:
        RecipeError: Something needs them in memory.
    """
    if stage.epochs:
        raise RecipeError(
            "--offload disk and --epochs exclude each other: training keeps weights, gradients and the optimizer's "
            "moments in memory; prune first, and run prune finetune where the smaller network fits"
        )
    if stage.params.get("latency") is not None:
        raise RecipeError(
            "--offload disk and --latency exclude each other: a network that is read from the disk while it runs is "
            "not as fast as it will be; give --macs or --params"
        )
