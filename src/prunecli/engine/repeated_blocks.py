"""The repeated blocks of a network, by how its modules are listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)


def repeated_blocks(network: nn.Module) -> list[str]:
    """Names of the repeated blocks of a network, in its order; what is inside one comes after it.

    They are the entries of the outermost lists (`nn.ModuleList`, `nn.Sequential`) whose modules are all of one class
    and have modules of their own; and within these the entries of such an `nn.Sequential`, as blocks in a stage.
    An inner `nn.ModuleList` may hold experts, of which not all run, so its entries do not count. Neither does a block
    that shares parameters with the rest of the network, which cannot be treated without it.

    Args:
        network: The network.
    """
    found = list(_entries(network, "", outermost=True))
    blocks: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        blocks.setdefault(id(parameter), set()).add(innermost(name, found))
    sharing = set().union(*(names for names in blocks.values() if len(names) > 1))
    modules = dict(network.named_modules(remove_duplicate=False))
    seen: set[int] = set()
    chosen = []
    for name in found:
        apart = name not in sharing and not any(other.startswith(f"{name}.") for other in sharing)
        if apart and id(modules[name]) not in seen:
            chosen.append(name)
            seen.add(id(modules[name]))
    return chosen


def innermost(name: str, blocks: Sequence[str]) -> str:
    """The innermost of some blocks that a parameter is in; an empty name where it is in none."""
    return max((block for block in blocks if name.startswith(f"{block}.")), key=len, default="")


def _entries(module: nn.Module, prefix: str, *, outermost: bool) -> Iterator[str]:
    kinds = _LISTS if outermost else nn.Sequential
    if isinstance(module, kinds) and _are_blocks(list(module.children())):
        for number, entry in module.named_children():
            yield f"{prefix}{number}"
            yield from _entries(entry, f"{prefix}{number}.", outermost=False)
        return
    for own, child in module.named_children():
        yield from _entries(child, f"{prefix}{own}.", outermost=outermost)


def _are_blocks(entries: Sequence[nn.Module]) -> bool:
    return (
        len(entries) > 1
        and len({type(entry) for entry in entries}) == 1
        and not isinstance(entries[0], _LISTS)
        and all(any(True for _ in entry.children()) and any(True for _ in entry.parameters()) for entry in entries)
    )
