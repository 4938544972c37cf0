"""From axes to groups: which of them can shrink, and everything that their channels occupy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.axes import Axis, Prod, Seq, Term, channel_of_position, leaves, resolve
from prunecli.surgery.groups import ChannelGroup, Kind, Member, Role
from prunecli.surgery.removal.known_layers import blocks_of_rows
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.liveness import axes_that_count
from prunecli.surgery.tracing.reasons import STEM, TIED_TO_STEM, UNREAD, width_of
from prunecli.surgery.tracing.traced import Frozen, Position

_READING = ("convolution", "addmm", "mm", "bmm", "mv", "embedding", "_embedding_bag")
"""Operators with which a layer reads what comes in."""
_ALIGNED = ("_grouped_mm", "_scaled_grouped_mm")
"""Products whose operands have to begin every 16 bytes."""
_ALIGNMENT = 8
"""Numbers in 16 bytes, in half precision."""


@dataclass
class _Occurrence:
    """A dimension of a parameter or buffer in which an axis occurs."""

    module: str
    tensor: str
    dim: int
    term: Term
    role: Role


def groups_of(
    model: nn.Module, followed: Followed, preferred: frozenset[Position], *, prune_stem: bool, heads: bool
) -> tuple[list[ChannelGroup], list[Frozen], frozenset[Position]]:
    by_axis, rivals = _occurrences(model, followed)
    order = {name: occurrence for occurrence, name in enumerate(followed.order)}
    parallel = {leaf for term in followed.heads for leaf in leaves(term) if leaf.reason is None}
    contracted = {leaf for term in followed.contracted for leaf in leaves(term)} - parallel
    candidates = {
        axis: occurrences
        for axis, occurrences in by_axis.items()
        if axis.reason is None and axis.size > 1 and any(occurrence.role == "producer" for occurrence in occurrences)
    }
    aligned = _aligned(followed)
    read = axes_that_count(followed)
    for axis in [axis for axis in candidates if axis not in read]:
        axis.reason = UNREAD
        del candidates[axis]
    frozen: list[Frozen] = []
    for axis in [axis for axis in candidates if axis in parallel and not heads]:
        del candidates[axis]
    liked = {axis for axis, occurrences in candidates.items() if _cut(axis, occurrences[0]) in preferred}
    chosen = _without_rivals(candidates, rivals, parallel, liked)
    cuts = frozenset(_cut(axis, candidates[axis][0]) for axis in chosen if rivals.get(axis))
    stem = _stem(model, followed)
    groups: list[ChannelGroup] = []
    names: dict[str, int] = {}
    for axis in chosen:
        occurrences = candidates[axis]
        writers = [
            occurrence for occurrence in occurrences if occurrence.role == "producer" and occurrence.tensor != "bias"
        ] or occurrences
        if (
            not prune_stem
            and any(p.module == stem for p in writers)
            and not _is_residual_stream(model, stem, axis, writers)
        ):
            frozen += [
                Frozen(name, width_of(model.get_submodule(name)), STEM if name == stem else TIED_TO_STEM)
                for name in dict.fromkeys(p.module for p in writers)
            ]
            continue
        first = min(writers, key=lambda occurrence: (order.get(occurrence.module, len(order)), occurrence.module))
        members = _members(axis, occurrences)
        name = first.module or first.tensor
        if first.tensor.startswith("weight_hr") and first.module:
            name += "#projection"
        count = names[name] = names.get(name, 0) + 1
        if count > 1:
            name = f"{name}#{count}"  # a layer that writes several runs of channels
        kind: Kind = "head" if axis in parallel else "head_dim" if axis in contracted else "channel"
        positions = members[occurrences.index(first)].index.shape[1]
        width = axis.size * positions // blocks_of_rows(model.get_submodule(first.module), first.tensor)
        multiple = _ALIGNMENT if axis in aligned and axis.size % _ALIGNMENT == 0 else 1
        groups.append(
            ChannelGroup(
                name=name, units=axis.size, channels=width, members=members, kind=kind, multiple=multiple, axis=axis
            )
        )
    groups.sort(key=lambda group: order.get(group.name.partition("#")[0], len(order)))
    return groups, frozen, cuts


def _aligned(followed: Followed) -> set[Axis]:
    """Axes of the rows and columns of products that take no other widths than multiples."""
    labels = (label for record in followed.records if record.operator in _ALIGNED for label in record.inputs)
    return {leaf for label in labels for term in label.dims[-2:] for leaf in leaves(term)}


def _occurrences(model: nn.Module, followed: Followed) -> tuple[dict[Axis, list[_Occurrence]], dict[Axis, set[Axis]]]:
    """Where each axis occurs, and which axes share a product with it; only one of those can be removed."""
    by_axis: dict[Axis, list[_Occurrence]] = {}
    rivals: dict[Axis, set[Axis]] = {}
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, label in followed.parameters.items():
        module, _, tensor = name.rpartition(".")
        source = label.source[0] if label.source else name
        for dim, term in enumerate(label.dims):
            free = [leaf for leaf in leaves(term) if leaf.reason is None]
            noted = followed.roles.get((source, dim)) if source in learned else None
            role: Role = noted or "carrier"
            for axis in dict.fromkeys(free):
                by_axis.setdefault(axis, []).append(_Occurrence(module, tensor, dim, term, role))
            _note_rivals(resolve(term), rivals)
    return by_axis, rivals


def _note_rivals(term: Term, rivals: dict[Axis, set[Axis]]) -> None:
    if isinstance(term, Seq):
        for part in term.parts:
            _note_rivals(resolve(part), rivals)
    elif isinstance(term, Prod):
        factors = [[leaf for leaf in leaves(item) if leaf.reason is None] for item in term.factors]
        for index, own in enumerate(factors):
            _note_rivals(resolve(term.factors[index]), rivals)
            others = {leaf for other, axes in enumerate(factors) if other != index for leaf in axes}
            for leaf in own:
                rivals.setdefault(leaf, set()).update(others)


def _without_rivals(
    candidates: Iterable[Axis], rivals: Mapping[Axis, set[Axis]], parallel: set[Axis], liked: set[Axis]
) -> list[Axis]:
    """Of axes that share a product: heads if they are candidates, else the preferred one, else the largest."""
    listed = list(candidates)
    chosen: dict[Axis, None] = {}
    for axis in sorted(listed, key=lambda axis: (axis not in parallel, axis not in liked, -axis.size)):
        against = rivals.get(axis, set())
        if axis not in against and not any(other in chosen for other in against):
            chosen[axis] = None
    return [axis for axis in listed if axis in chosen]


def _cut(axis: Axis, occurrence: _Occurrence) -> Position:
    """Which axis from the left this is in the dimension."""
    name = f"{occurrence.module}.{occurrence.tensor}" if occurrence.module else occurrence.tensor
    return name, occurrence.dim, list(leaves(occurrence.term)).index(axis)


def _stem(model: nn.Module, followed: Followed) -> str:
    """The layer that reads the network's input: a convolution if there is one, else the first; "" for none.

    A recurrent layer is none: often it is all there is.
    """
    readers: dict[str, nn.Module] = {}
    for record in followed.records:
        reads = [label for label in record.inputs if label.from_input]
        if record.operator in _READING and reads and not any(label.learned for label in reads):
            readers.setdefault(record.module, model.get_submodule(record.module))
    convolutions = (name for name, module in readers.items() if isinstance(module, _ConvNd))
    name = next(convolutions, next(iter(readers), ""))
    return "" if isinstance(readers.get(name), (nn.RNNBase, nn.RNNCellBase)) else name


def _is_residual_stream(model: nn.Module, stem: str, axis: Axis, writers: Sequence[_Occurrence]) -> bool:
    """Whether linear or recurrent layers, or much of the network, also write the stem's channels.

    That is so for a residual stream, and for an embedding that the last layer shares.
    """
    others = [occurrence for occurrence in writers if occurrence.module != stem]
    kinds = (nn.Linear, nn.RNNBase, nn.RNNCellBase)
    if any(isinstance(model.get_submodule(occurrence.module), kinds) for occurrence in others):
        return True
    written = sum(_elements(model, occurrence, axis) for occurrence in others)
    return len(others) >= 8 and written > 0.25 * sum(p.numel() for p in model.parameters())


def _elements(model: nn.Module, occurrence: _Occurrence, axis: Axis) -> int:
    tensor: Tensor = getattr(model.get_submodule(occurrence.module), occurrence.tensor)
    return int((channel_of_position(occurrence.term, axis) >= 0).sum()) * tensor.numel() // tensor.shape[occurrence.dim]


def _members(axis: Axis, occurrences: Sequence[_Occurrence]) -> tuple[Member, ...]:
    """What an axis occupies; where it is a whole dimension, its positions are one tensor."""
    whole = torch.arange(axis.size).reshape(-1, 1)
    return tuple(
        Member(place.module, place.tensor, place.dim, index, place.role)
        for place in occurrences
        for index in (whole if resolve(place.term) is axis else index_of(axis, place.term),)
    )


def index_of(axis: Axis, term: Term) -> Tensor:
    """Positions of each channel of `axis` along a dimension, shape (channels, positions per channel)."""
    channel = channel_of_position(term, axis)
    positions = np.flatnonzero(channel >= 0)
    order = np.argsort(channel[positions], kind="stable")
    return torch.from_numpy(positions[order]).reshape(axis.size, -1)
