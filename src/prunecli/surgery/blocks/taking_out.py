"""Taking blocks out of a network: out of the list that holds them, or with something in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from prunecli.checkpoint.manifest import RemovedBlock
from prunecli.errors import ModelError
from prunecli.inputs import output_tensors

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class PassedOn(nn.Module):
    """What stands where a block was that could not be left out of a list: it returns its first tensor."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the first floating tensor of its arguments."""
        return next(tensor for tensor in output_tensors([args, kwargs]) if tensor.is_floating_point())


def is_listed(model: nn.Module, name: str) -> bool:
    """Whether a module is an entry of a list, which can do without it."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), _LISTS)


def in_order(names: Sequence[str]) -> list[str]:
    """Names of modules, the later entries of a list before the earlier ones, whose names their removal changes."""
    return sorted(names, key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else 0, part)
                                           for part in name.split(".")], reverse=True)  # fmt: skip


def take_out(model: nn.Module, removed: Sequence[RemovedBlock]) -> dict[str, str]:
    """Takes blocks out of a network, in place, one after the other.

    Args:
        model: Changed in place.
        removed: Names as they are once the blocks before it are gone.

    Returns:
        For the name of every module that is left, the name that it had before.

    Raises:
        ModelError: There is no such module: the record belongs to another network.
    """
    before = dict(model.named_modules(remove_duplicate=False))
    for block in removed:
        parent_name, _, leaf = block.name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            known = isinstance(getattr(parent, leaf), nn.Module)
        except AttributeError:
            known = False
        if not known or not leaf:
            raise ModelError(f"the manifest takes out module {block.name!r}, which the architecture does not have")
        if block.left == "identity":
            setattr(parent, leaf, PassedOn())
        elif not isinstance(parent, _LISTS):
            raise ModelError(f"the manifest takes {block.name!r} out of a list, and the architecture has none there")
        else:
            _delete(parent, leaf)
    return former_names(before, model)


def _delete(parent: nn.Module, leaf: str) -> None:
    numbered = list(parent._modules) == [str(index) for index in range(len(parent._modules))]
    if isinstance(parent, (nn.Sequential, nn.ModuleList)) and numbered:
        del parent[int(leaf)]
    else:
        del parent._modules[leaf]


def former_names(before: Mapping[str, nn.Module], model: nn.Module) -> dict[str, str]:
    """The names that modules had before, by those they have now.

    Args:
        before: Modules by the names that they had.
        model: The network now.
    """
    former: dict[int, list[str]] = {}
    for name, module in before.items():
        former.setdefault(id(module), []).append(name)
    names: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = former.get(id(module), [])
        own = name if name in known else next(iter(known), None)
        if own is not None:
            names[name] = own
    return names
