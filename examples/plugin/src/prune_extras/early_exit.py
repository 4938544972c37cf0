"""A runtime method: the last blocks of a timm vision transformer are skipped; no weight changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from prune_extras.specs import EarlyExitParams
from prunecli.errors import MethodError
from prunecli.inputs import Inputs
from prunecli.methods.runtime import Description, RuntimeMethod


class EarlyExit(RuntimeMethod):
    """A change is {"skipped": [numbers of blocks]}."""

    done = "its last blocks are skipped"

    def plan(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        params: EarlyExitParams,
        seed: int,
        speedup_of: Callable[[Any], float],
    ) -> dict[str, Any]:
        """The last blocks."""
        count = len(_blocks(model))
        if params.skip >= count:
            raise MethodError(f"--skip {params.skip}: the network has {count} blocks; skip fewer")
        return {"skipped": list(range(count - params.skip, count))}

    def apply(self, model: nn.Module, change: Mapping[str, Any]) -> Callable[[], None]:
        """Replaces the forward pass of the skipped blocks."""
        blocks = _blocks(model)
        skipped = change.get("skipped")
        if not isinstance(skipped, list) or not all(isinstance(n, int) and 0 <= n < len(blocks) for n in skipped):
            raise MethodError(f"a network of {len(blocks)} blocks cannot skip {skipped!r}")
        chosen = [blocks[number] for number in skipped]
        for block in chosen:
            block.__dict__["forward"] = _unchanged  # shadows the class's forward; `undo` takes it away again

        def undo() -> None:
            for block in chosen:
                block.__dict__.pop("forward", None)

        return undo

    def baseline(self, model: nn.Module, change: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """As many blocks, chosen at random."""
        order = torch.randperm(len(_blocks(model)), generator=torch.Generator().manual_seed(seed))
        return {"skipped": sorted(order[: len(change["skipped"])].tolist())}

    def describe(self, model: nn.Module, changes: Mapping[str, Any], example_inputs: Inputs) -> Description:
        """Which blocks are skipped."""
        texts = [
            ", ".join(map(str, changes[name]["skipped"])) if changes.get(name) else ""
            for name in ("unpruned", "pruned", "random")
        ]
        return Description(
            {"skipped": changes["pruned"]["skipped"]}, [("skipped blocks", texts[0], texts[1], texts[2])]
        )


def _unchanged(x: Any, *args: Any, **options: Any) -> Any:
    return x


def _blocks(model: nn.Module) -> nn.Sequential:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential):
        raise MethodError(f"a {type(model).__name__} has no blocks to skip; give a vision transformer of timm")
    return blocks
