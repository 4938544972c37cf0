"""Removing channels: the only place where a model's shapes change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.surgery.groups import ChannelGroup, Keep, Width, dropped_units
from prunecli.surgery.removal.derived import refer_to_new, refresh
from prunecli.surgery.removal.entries import entry, own, with_entry
from prunecli.surgery.removal.known_layers import own_widths
from prunecli.widened import scale_positions

_Made = dict[int, tuple[Any, Any]]
"""Old and new tensor by the ids of both. The old one is kept, since ids of freed objects are used again."""
_PARAMETRISED = ".parametrizations."


@dataclass(frozen=True)
class AttributeChange:
    """An attribute of a module that a removal set to another value.

    Attributes:
        module: Dotted name of the module.
        attribute: Name of the attribute.
        path: Indices, keys and attribute names that lead to the entry, empty for a plain number.
        old: The value before.
        new: The value after.
        repeats: Whether it only repeats the shape of a tensor of the same layer, such as `out_channels`.
    """

    module: str
    attribute: str
    path: tuple[int | str, ...]
    old: Any
    new: Any
    repeats: bool = False

    @property
    def name(self) -> str:
        """Where the entry is, as code would write it."""
        inner = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return f"{self.module}.{self.attribute}{inner}".lstrip(".")


def remove(
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    keep: Keep,
    kept: Mapping[str, dict[int, Tensor]] | None = None,
) -> tuple[AttributeChange, ...]:
    """Keeps the units in `keep` and removes all others, in place.

    Tensors are sliced, module attributes that hold widths are updated, and query rows are rescaled where head
    dimensions are removed, so that attention keeps its temperature.

    Args:
        model: The model the groups were traced on, or a copy of it.
        groups: Groups from `trace`; those without an entry in `keep` lose nothing.
        keep: For each group name the unit indices to keep.
        kept: From `kept_positions`, if they are known.

    Returns:
        The attributes that were changed.

    Raises:
        ValueError: An entry of `keep` is empty, out of range or repeated.
    """
    chosen = [group for group in groups if group.name in keep]
    for group in chosen:
        _check_units(group, keep[group.name])
    counts = {group.name: len(keep[group.name]) for group in chosen}
    _rescale(model, chosen, counts)
    kept = kept_positions(model, chosen, keep) if kept is None else kept
    made: _Made = {}
    for name, by_dim in kept.items():
        module_name, _, tensor_name = name.rpartition(".")
        _slice_tensor(model.get_submodule(module_name), tensor_name, by_dim, made)
    refer_to_new(model, made)
    widths = dict.fromkeys(width for group in chosen for width in group.widths)
    changes = list(_set_widths(model, widths, {group.name: group.units for group in chosen}, counts))
    touched = [*(_owner(name) for name in kept), *(width.module for width in widths)]
    for module_name in dict.fromkeys(touched):
        refresh(model.get_submodule(module_name))
        changes += _sync_widths(module_name, model.get_submodule(module_name))
    return _merged(changes)


def make_contiguous(model: nn.Module) -> None:
    """Lays out parameters as checkpoints store them, in place: another order of additions gives other last bits."""
    for parameter in model.parameters():
        images = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
        if not parameter.is_contiguous() and not images:
            parameter.data = parameter.data.contiguous()


def kept_positions(model: nn.Module, groups: Iterable[ChannelGroup], keep: Keep) -> dict[str, dict[int, Tensor]]:
    """The positions that `remove` leaves in every tensor it shortens.

    Args:
        model: The model before the removal.
        groups: The groups of its trace; those without an entry in `keep` lose nothing.
        keep: Kept units by group name.

    Returns:
        For each tensor name and dimension that loses positions, the kept ones, sorted, dtype int64.
    """
    lost: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    sizes: dict[tuple[str, int], int] = {}
    known: dict[int, NDArray[np.int64]] = {}  # most dimensions have the same positions
    for group in groups:
        if group.name not in keep or len(keep[group.name]) == group.units:
            continue
        dropped = dropped_units(group, keep[group.name]).numpy()
        for member in group.members:
            if id(member.index) not in known:
                known[id(member.index)] = member.index.numpy()[dropped].reshape(-1)
            place = member.name, member.dim
            lost.setdefault(place, []).append(known[id(member.index)])
            sizes[place] = getattr(model.get_submodule(member.module), member.tensor).shape[member.dim]
    kept: dict[str, dict[int, Tensor]] = {}
    shared: dict[tuple[int, ...], Tensor] = {}
    for (name, dim), positions in lost.items():
        same = (sizes[name, dim], *map(id, positions))
        if same not in shared:
            mask = np.ones(sizes[name, dim], dtype=bool)
            for some in positions:
                mask[some] = False
            shared[same] = torch.from_numpy(np.flatnonzero(mask))
        kept.setdefault(name, {})[dim] = shared[same]
    return kept


def without_copies(
    model: nn.Module, groups: Iterable[ChannelGroup], kept: Mapping[str, Mapping[int, Tensor]]
) -> dict[int, Any]:
    """The parameters that a copy may share until `remove` replaces them in it; for `copied`.

    Args:
        model: The model before the removal.
        groups: The groups of its trace.
        kept: From `kept_positions`.
    """
    written = {f"{scale.module}.{scale.tensor}".lstrip(".") for group in groups for scale in group.scales}
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    replaced = {key for key, own in names.items() if own <= kept.keys() and own.isdisjoint(written)}
    return {id(parameter): parameter for parameter in model.parameters() if id(parameter) in replaced}


def _check_units(group: ChannelGroup, units: Tensor) -> None:
    if units.numel() == 0:
        raise ValueError(f"{group.name}: every channel would be removed")
    if int(units.min()) < 0 or int(units.max()) >= group.units or torch.unique(units).numel() != units.numel():
        raise ValueError(f"{group.name}: kept units must be distinct and lie in 0..{group.units - 1}")


def _rescale(model: nn.Module, groups: Sequence[ChannelGroup], counts: dict[str, int]) -> None:
    for group in groups:
        ratio = (counts[group.name] / group.units) ** 0.5
        for scale in group.scales if ratio != 1 else ():
            tensor = getattr(model.get_submodule(scale.module), scale.tensor)
            with torch.no_grad():
                scale_positions(tensor, scale.dim, scale.positions, ratio)


def _slice_tensor(module: nn.Module, name: str, kept: dict[int, Tensor], made: _Made) -> None:
    old = getattr(module, name)
    if id(old) in made:
        new = made[id(old)][1]  # a tensor used in two modules stays tied; a module under two names has it already
    else:
        sliced = old.detach()  # every dimension in `kept` loses some, so the result is a copy
        for dim, positions in kept.items():
            sliced = sliced.index_select(dim, positions.to(sliced.device))
        new = nn.Parameter(sliced, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else sliced
        made[id(old)] = made[id(new)] = (old, new)
    if isinstance(old, nn.Parameter):
        module._parameters[name] = new
    else:
        module._buffers[name] = new


def _owner(name: str) -> str:
    """The module that computes with a tensor: not the one in which a parametrisation keeps it."""
    path = f".{name}"
    before, parametrised, _ = path.partition(_PARAMETRISED)
    return (before if parametrised else path.rpartition(".")[0]).lstrip(".")


def _set_widths(
    model: nn.Module, widths: Iterable[Width], old: dict[str, int], counts: dict[str, int]
) -> Iterator[AttributeChange]:
    """Sets every attribute once, also if the module has several names."""
    done: set[tuple[int, str, tuple[int | str, ...]]] = set()
    for width in widths:
        module = model.get_submodule(width.module)
        if (id(module), width.attribute, width.path) in done:
            continue
        done.add((id(module), width.attribute, width.path))
        new = width.size.value(counts)
        registered = module._buffers.get(width.attribute)
        value: Any = own(module, width.attribute) if registered is None else registered
        before = entry(value, width.path)
        if width.root:
            changed = with_entry(value, width.path, before * (width.size.value(old) / new) ** 0.5)
        else:
            changed = with_entry(value, width.path, new)
        if registered is None:
            object.__setattr__(module, width.attribute, changed)
        yield AttributeChange(width.module, width.attribute, width.path, before, entry(changed, width.path))


def _sync_widths(name: str, module: nn.Module) -> Iterator[AttributeChange]:
    """Makes the width attributes of a known layer agree with its tensors."""
    for attribute, value in _computed_widths(module).items():
        old = getattr(module, attribute)
        if old != value:
            object.__setattr__(module, attribute, value)
            yield AttributeChange(name, attribute, (), old, value, repeats=True)


def _computed_widths(module: nn.Module) -> dict[str, Any]:
    """`own_widths`, for which a parametrised weight is computed: in evaluation mode, which leaves its state alone."""
    parametrised = getattr(module, "parametrizations", None)
    with torch.no_grad():
        if not isinstance(parametrised, nn.ModuleDict):
            return own_widths(module)
        modes = {part: part.training for part in parametrised.modules()}
        parametrised.eval()
        try:
            return own_widths(module)
        finally:
            for part, mode in modes.items():
                part.training = mode


def _merged(changes: Iterable[AttributeChange]) -> tuple[AttributeChange, ...]:
    """One change for each entry, from its first value to its last."""
    first: dict[tuple[str, str, tuple[int | str, ...]], AttributeChange] = {}
    for change in changes:
        key = (change.module, change.attribute, change.path)
        first[key] = replace(first[key], new=change.new) if key in first else change
    return tuple(change for change in first.values() if change.old != change.new)
