"""Which parameters are one channel: groups from following every channel through the model's operators.

`follow` labels every dimension of every tensor with terms over axes. An axis that no rule has frozen, and that some
layer writes, is a group: its members are all parameter and buffer dimensions whose terms contain it. Half of all
groups is then removed from a trial copy, which has to run, in training mode too; `verify` compares numbers on every
actual removal.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.errors import DataDependentError, ModelError
from prunecli.inputs import Inputs, cast_inputs, output_tensors
from prunecli.surgery.axes import Axis, Prod, Seq, Term, channel_of_position, freeze_position, leaves, resolve
from prunecli.surgery.groups import ChannelGroup, Kind, Member, Role
from prunecli.surgery.tracing.adapters import tie_equal_widths, tie_known_modules
from prunecli.surgery.tracing.attention import temperatures
from prunecli.surgery.tracing.attributes import width_attributes
from prunecli.surgery.tracing.emissions import with_emissions
from prunecli.surgery.tracing.follow import follow
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.part import parts_that_can_be_followed, trace_part
from prunecli.surgery.tracing.running import one_line
from prunecli.surgery.tracing.search import Description, frozen_too, workable
from prunecli.surgery.tracing.traced import Assumptions, Frozen, Place, Trace

STEM = "first layer (protected; --prune-stem to include it)"
UNREACHED = "not reached by the forward pass"
HEADS = "attention heads (--heads removes whole heads)"
UNWRITTEN = "no layer writes its channels alone"


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    prune_stem: bool = False,
    heads: bool = False,
    only: str = "",
    time_limit_s: float = 120.0,
    assumptions: Assumptions | None = None,
) -> Trace:
    """Finds the channel groups of `model`.

    Args:
        model: Any module; frozen parameters are included. It is not changed.
        example_inputs: Inputs of a shape the model accepts, for instance (1, 3, 224, 224).
        prune_stem: Whether the first convolution's width may change. A patch embedding, whose channels linear layers
            write too, is not protected.
        heads: Whether attention shrinks by whole heads, instead of by the same dimensions of every head.
        only: Name of a module to trace alone, on what the model gives it.
        time_limit_s: Seconds after which whatever makes the model stop is frozen without looking for the cause.
        assumptions: Where the trial begins, from an earlier trace of the same model.

    Raises:
        ModelError: The model cannot be run on these inputs, or what it computes depends on their values.
    """
    if not output_tensors(example_inputs):
        raise ModelError("example_inputs contains no tensor; it must be a tensor, or a tuple, mapping or list of them")
    if only:

        def alone(module: nn.Module, given: Inputs) -> Trace:
            return trace(
                module, given, prune_stem=True, heads=heads, time_limit_s=time_limit_s, assumptions=assumptions
            )

        return trace_part(model, example_inputs, only, alone)
    _refuse_what_cannot_run(model)
    try:
        traced = copy.deepcopy(model).cpu().float().eval()
    except RuntimeError as error:
        raise ModelError(f"the model cannot be copied: {one_line(error)}") from error
    inputs = cast_inputs(example_inputs, device="cpu", dtype=torch.float32)

    def described(network: nn.Module, given: Inputs, assumptions: Assumptions) -> Description:
        return _describe(network, given, assumptions, prune_stem=prune_stem, heads=heads)

    try:
        found = workable(traced, lambda given: described(traced, inputs, given), inputs, time_limit_s, assumptions)
    except DataDependentError as error:
        parts = [f"--only {name}" for name in parts_that_can_be_followed(traced, inputs)[:3]]
        raise DataDependentError(f"{error}; what can be pruned: {' or '.join(parts) or 'nothing'}") from error
    dtype = torch.float64
    try:
        final = described(traced.double(), cast_inputs(inputs, dtype=dtype), found)
    except ModelError:  # the model casts to float32 inside
        dtype = torch.float32
        final = described(traced.float(), inputs, found)
    frozen = [*final.frozen, *_left_over(traced, final.followed, final.groups, final.frozen)]
    return Trace(tuple(final.groups), tuple(frozen), final.followed, dtype, replace(found, preferred=final.cuts))


def _refuse_what_cannot_run(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{name or 'the model'} is compiled by TorchScript; give the module it was made from")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter):
            raise ModelError(f"{name} has no values yet; load weights or run the model once")


def without(traced: Trace, faulty: Mapping[str, str]) -> Assumptions:
    """Assumptions for tracing again with some groups frozen, each for its reason."""
    assert traced.assumptions is not None
    if traced.part is not None:
        return without(traced.part.trace, traced.part.own(faulty))
    return frozen_too(traced.assumptions, [(traced.group(name), reason) for name, reason in faulty.items()])


def _describe(
    model: nn.Module, inputs: Inputs, assumptions: Assumptions, *, prune_stem: bool, heads: bool
) -> Description:
    followed = follow(model, inputs)
    tie_known_modules(model, followed)
    for name, module in model.named_modules():
        if type(module).__name__ in assumptions.tied:
            tie_equal_widths(followed, name)
    for (tensor, dim, position), reason in assumptions.frozen.items():
        freeze_position(followed.parameters[tensor].dims[dim], position, reason)
    groups, frozen, cuts = _groups(model, followed, assumptions.preferred, prune_stem=prune_stem, heads=heads)
    by_axis = {group.axis: group for group in groups if group.axis is not None}
    scales, roots = temperatures(model, followed, by_axis)
    widths, questions = width_attributes(model, followed, by_axis, assumptions.choices)
    complete = [
        replace(
            group,
            widths=tuple(width for width in (*widths, *roots) if group.name in width.groups),
            scales=tuple(scale for scale in scales if scale.group == group.name),
        )
        for group in groups
    ]
    return Description(followed, with_emissions(model, followed, complete, _index), frozen, questions, cuts)


@dataclass
class _Place:
    """One dimension of one parameter or buffer in which an axis occurs."""

    module: str
    tensor: str
    dim: int
    term: Term
    role: Role


def _groups(
    model: nn.Module, followed: Followed, preferred: frozenset[Place], *, prune_stem: bool, heads: bool
) -> tuple[list[ChannelGroup], list[Frozen], frozenset[Place]]:
    places, rivals = _places(model, followed)
    order = {name: place for place, name in enumerate(followed.order)}
    parallel = {leaf for term in followed.heads for leaf in leaves(term) if leaf.reason is None}
    contracted = {leaf for term in followed.contracted for leaf in leaves(term)} - parallel
    candidates = {
        axis: found
        for axis, found in places.items()
        if axis.reason is None and axis.size > 1 and any(place.role == "producer" for place in found)
    }
    frozen: list[Frozen] = []
    for axis in [axis for axis in candidates if axis in parallel and not heads]:
        del candidates[axis]
    liked = {axis for axis, found in candidates.items() if _cut(axis, found[0]) in preferred}
    chosen = _without_rivals(candidates, rivals, parallel, liked)
    cuts = frozenset(_cut(axis, candidates[axis][0]) for axis in chosen if rivals.get(axis))
    stem = _stem(model, followed)
    groups: list[ChannelGroup] = []
    names: dict[str, int] = {}
    for axis in chosen:
        found = candidates[axis]
        writers = [place for place in found if place.role == "producer" and place.tensor != "bias"] or found
        if (
            not prune_stem
            and any(p.module == stem for p in writers)
            and not _is_residual_stream(model, stem, axis, writers)
        ):
            frozen += [
                Frozen(name, _width(model.get_submodule(name)), STEM)
                for name in dict.fromkeys(p.module for p in writers)
            ]
            continue
        first = min(writers, key=lambda place: (order.get(place.module, len(order)), place.module))
        members = tuple(_member(axis, place) for place in found)
        name = first.module or first.tensor
        count = names[name] = names.get(name, 0) + 1
        if count > 1:
            name = f"{name}#{count}"  # a layer that writes several runs of channels
        kind: Kind = "head" if axis in parallel else "head_dim" if axis in contracted else "channel"
        width = axis.size * members[found.index(first)].index.shape[1]
        groups.append(ChannelGroup(name=name, units=axis.size, channels=width, members=members, kind=kind, axis=axis))
    groups.sort(key=lambda group: order.get(group.name.partition("#")[0], len(order)))
    return groups, frozen, cuts


def _places(model: nn.Module, followed: Followed) -> tuple[dict[Axis, list[_Place]], dict[Axis, set[Axis]]]:
    """Where each axis occurs, and which axes share a product with it: only one of those is removed."""
    places: dict[Axis, list[_Place]] = {}
    rivals: dict[Axis, set[Axis]] = {}
    learned = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, label in followed.parameters.items():
        module, _, tensor = name.rpartition(".")
        source = label.source[0] if label.source else name
        for dim, term in enumerate(label.dims):
            found = [leaf for leaf in leaves(term) if leaf.reason is None]
            noted = followed.roles.get((source, dim)) if source in learned else None
            role: Role = noted or "carrier"
            for axis in dict.fromkeys(found):
                places.setdefault(axis, []).append(_Place(module, tensor, dim, term, role))
            _note_rivals(resolve(term), rivals)
    return places, rivals


def _note_rivals(term: Term, rivals: dict[Axis, set[Axis]]) -> None:
    if isinstance(term, Seq):
        for part in term.parts:
            _note_rivals(resolve(part), rivals)
    elif isinstance(term, Prod):
        factors = [[leaf for leaf in leaves(item) if leaf.reason is None] for item in term.factors]
        for place, own in enumerate(factors):
            _note_rivals(resolve(term.factors[place]), rivals)
            others = {leaf for other, found in enumerate(factors) if other != place for leaf in found}
            for leaf in own:
                rivals.setdefault(leaf, set()).update(others)


def _without_rivals(
    candidates: Iterable[Axis], rivals: Mapping[Axis, set[Axis]], parallel: set[Axis], liked: set[Axis]
) -> list[Axis]:
    """Of axes that share a product, heads where asked for, else the preferred one, else the one with most units."""
    listed = list(candidates)
    chosen: dict[Axis, None] = {}
    for axis in sorted(listed, key=lambda axis: (axis not in parallel, axis not in liked, -axis.size)):
        against = rivals.get(axis, set())
        if axis not in against and not any(other in chosen for other in against):
            chosen[axis] = None
    return [axis for axis in listed if axis in chosen]


def _cut(axis: Axis, place: _Place) -> Place:
    """Which axis from the left this is in the dimension at `place`."""
    name = f"{place.module}.{place.tensor}" if place.module else place.tensor
    return name, place.dim, list(leaves(place.term)).index(axis)


def _stem(model: nn.Module, followed: Followed) -> str:
    layers = [name for name in followed.order if isinstance(model.get_submodule(name), (_ConvNd, nn.Linear))]
    return next(
        (name for name in layers if isinstance(model.get_submodule(name), _ConvNd)), layers[0] if layers else ""
    )


def _is_residual_stream(model: nn.Module, stem: str, axis: Axis, writers: Sequence[_Place]) -> bool:
    """Whether the stem's channels run on: linear layers write them too, or much of the network does."""
    others = [place for place in writers if place.module != stem]
    if any(isinstance(model.get_submodule(place.module), nn.Linear) for place in others):
        return True
    written = sum(_elements(model, place, axis) for place in others)
    return len(others) >= 8 and written > 0.25 * sum(p.numel() for p in model.parameters())


def _elements(model: nn.Module, place: _Place, axis: Axis) -> int:
    tensor: Tensor = getattr(model.get_submodule(place.module), place.tensor)
    return int((channel_of_position(place.term, axis) >= 0).sum()) * tensor.numel() // tensor.shape[place.dim]


def _member(axis: Axis, place: _Place) -> Member:
    return Member(place.module, place.tensor, place.dim, _index(axis, place.term), place.role)


def _index(axis: Axis, term: Term) -> Tensor:
    """Positions of each channel of `axis` along a dimension, shape (channels, positions per channel)."""
    channel = channel_of_position(term, axis)
    positions = np.flatnonzero(channel >= 0)
    order = np.argsort(channel[positions], kind="stable")
    return torch.from_numpy(positions[order]).reshape(axis.size, -1)


def _left_over(
    model: nn.Module, followed: Followed, groups: Sequence[ChannelGroup], frozen: Sequence[Frozen]
) -> list[Frozen]:
    """Layers that stand in no group and no refusal yet: nothing may be left out in silence."""
    seen = {entry.name for entry in frozen}
    for group in groups:
        seen.update(member.module for member in group.members if member.role != "consumer")
    used = {name.rpartition(".")[0] for name, _ in followed.roles}
    found: list[Frozen] = []
    for name, module in model.named_modules():
        if name in seen or not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        reason = UNREACHED if name not in used else _reason(followed, name)
        found.append(Frozen(name, _width(module), reason))
    return found


def _reason(followed: Followed, module: str) -> str:
    weight = f"{module}.weight" if module else "weight"
    label = followed.parameters.get(weight)
    if label is None:
        return UNWRITTEN
    written = [dim for dim in range(len(label.dims)) if followed.roles.get((weight, dim)) == "producer"]
    for leaf in (leaf for dim in written or [0] for leaf in leaves(label.dims[dim])):
        if leaf.reason is not None:
            return leaf.reason
    return HEADS if written else UNREACHED


def _width(module: nn.Module) -> int:
    if isinstance(module, (nn.Linear, _ConvNd)):
        return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
    return max((parameter.shape[0] for parameter in module.parameters() if parameter.dim() > 0), default=0)
