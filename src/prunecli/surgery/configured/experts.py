"""Configurations of transformers with fewer experts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from prunecli.checkpoint.manifest import RemovedBlock
from prunecli.copying import copied
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.configured.rebuilt import (
    Rebuilt,
    built,
    differences,
    entries,
    holder,
    owner,
    set_entry,
    structure,
)
from prunecli.surgery.removal.rebuild import state_tensors


def rebuilt_with_fewer_experts(model: nn.Module, pruned: nn.Module, removed: Sequence[RemovedBlock]) -> Rebuilt | None:
    """A model with fewer experts as transformers builds it.

    Args:
        model: The network with all experts; not changed.
        pruned: The network without some: where its tensors have fewer entries, the library's have to.
        removed: Modules that were taken out.

    Returns:
        None if the network is none of transformers, or no configuration gives such tensors.
    """
    left, sizes, shorter = state_tensors(pruned), set(), {}
    for name, tensor in state_tensors(model).items():
        dims = [dim for dim in range(tensor.dim()) if name in left and tensor.shape[dim] != left[name].shape[dim]]
        for dim in dims:
            shorter[name] = dim
            sizes.add((tensor.shape[dim], left[name].shape[dim]))
    around = owner(model, [*shorter, *(block.name for block in removed)])
    if around is None or len(sizes) != 1:
        return None
    (before, after), prefix = sizes.pop(), f"{around}." if around else ""
    own: Any = model.get_submodule(around)
    full = built(own, own.config)
    if full is None or structure(full) != structure(own):
        return None
    shortened = copied(full)
    take_out(shortened, [RemovedBlock(name=block.name.removeprefix(prefix)) for block in removed])
    wanted = {
        name: tuple(after if shorter.get(f"{prefix}{name}") == dim else size for dim, size in enumerate(tensor.shape))
        for name, tensor in state_tensors(shortened).items()
    }
    numbers = list(entries(own.config, lambda value: type(value) is int and value == before))
    for entry in sorted(numbers, key=lambda entry: "expert" not in entry.name):
        config = copy.deepcopy(own.config)
        set_entry(holder(config, entry), entry, after)
        smaller = built(own, config)
        if smaller is not None and {name: tuple(t.shape) for name, t in state_tensors(smaller).items()} == wanted:
            return Rebuilt(around, smaller, differences(shortened, smaller, prefix))
    return None
