"""Which parameters are one channel: groups from following every channel through the model's operators.

`follow` labels every dimension of every tensor with terms over axes. An axis that no rule has frozen, and that some
layer writes, is a group: its members are all parameter and buffer dimensions whose terms contain it. Half of all
groups is then removed from a trial copy, which has to run, in training mode too; `verify` compares numbers on every
actual removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.copying import copied
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
from prunecli.surgery.tracing.search import Description, frozen_too, workable
from prunecli.surgery.tracing.shared_storage import refuse_shared_storage
from prunecli.surgery.tracing.traced import Assumptions, Frozen, Position, Trace

STEM = "first layer (protected; --prune-stem to include it)"
UNREACHED = "not reached by the forward pass"
_HEADS = "attention heads (--heads removes whole heads)"
_UNWRITTEN = "no layer writes its channels alone"


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
        prune_stem: Whether the first convolution's width may change. A patch embedding is not
            protected if linear layers write its channels too.
        heads: Whether attention shrinks by whole heads, instead of by the same dimensions of every head.
        only: Name of a module to trace alone, on its inputs in the model.
        time_limit_s: Seconds after which groups that make the model fail are frozen without looking for the cause.
        assumptions: What an earlier trace of the same model learned; trials start from there.

    Raises:
        ModelError: The model cannot be run on these inputs, or what it computes depends on their values.
    """
    if not output_tensors(example_inputs):
        raise ModelError("example_inputs contains no tensor; it must be a tensor, or a tuple, mapping or list of them")
    if only:

        def alone(module: nn.Module, part_inputs: Inputs) -> Trace:
            return trace(
                module, part_inputs, prune_stem=True, heads=heads, time_limit_s=time_limit_s, assumptions=assumptions
            )

        return trace_part(model, example_inputs, only, alone)
    _refuse_what_cannot_run(model)
    traced = copied(model).cpu().float().eval()
    inputs = cast_inputs(example_inputs, device="cpu", dtype=torch.float32)
    refuse_shared_storage(model, traced, inputs)

    def described(network: nn.Module, inputs: Inputs, assumptions: Assumptions) -> Description:
        return _describe(network, inputs, assumptions, prune_stem=prune_stem, heads=heads)

    try:
        answers = workable(traced, lambda tried: described(traced, inputs, tried), inputs, time_limit_s, assumptions)
    except DataDependentError as error:
        parts = [f"--only {name}" for name in parts_that_can_be_followed(traced, inputs)[:3]]
        raise DataDependentError(f"{error}; what can be pruned: {' or '.join(parts) or 'nothing'}") from error
    dtype = torch.float64
    try:
        final = described(traced.double(), cast_inputs(inputs, dtype=dtype), answers)
    except ModelError:  # the model casts to float32 inside
        dtype = torch.float32
        final = described(traced.float(), inputs, answers)
    frozen = [*final.frozen, *_left_over(traced, final.followed, final.groups, final.frozen)]
    return Trace(tuple(final.groups), tuple(frozen), final.followed, dtype, replace(answers, preferred=final.cuts))


def _refuse_what_cannot_run(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{name or 'the model'} is compiled by TorchScript; pass the module it was compiled from")
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
class _Occurrence:
    """A dimension of a parameter or buffer in which an axis occurs."""

    module: str
    tensor: str
    dim: int
    term: Term
    role: Role


def _groups(
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
                Frozen(name, _width(model.get_submodule(name)), STEM)
                for name in dict.fromkeys(p.module for p in writers)
            ]
            continue
        first = min(writers, key=lambda occurrence: (order.get(occurrence.module, len(order)), occurrence.module))
        members = tuple(_member(axis, occurrence) for occurrence in occurrences)
        name = first.module or first.tensor
        count = names[name] = names.get(name, 0) + 1
        if count > 1:
            name = f"{name}#{count}"  # a layer that writes several runs of channels
        kind: Kind = "head" if axis in parallel else "head_dim" if axis in contracted else "channel"
        width = axis.size * members[occurrences.index(first)].index.shape[1]
        groups.append(ChannelGroup(name=name, units=axis.size, channels=width, members=members, kind=kind, axis=axis))
    groups.sort(key=lambda group: order.get(group.name.partition("#")[0], len(order)))
    return groups, frozen, cuts


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
    layers = [name for name in followed.order if isinstance(model.get_submodule(name), (_ConvNd, nn.Linear))]
    return next(
        (name for name in layers if isinstance(model.get_submodule(name), _ConvNd)), layers[0] if layers else ""
    )


def _is_residual_stream(model: nn.Module, stem: str, axis: Axis, writers: Sequence[_Occurrence]) -> bool:
    """Whether the stem's channels are a residual stream: linear layers, or much of the network, also write them."""
    others = [occurrence for occurrence in writers if occurrence.module != stem]
    if any(isinstance(model.get_submodule(occurrence.module), nn.Linear) for occurrence in others):
        return True
    written = sum(_elements(model, occurrence, axis) for occurrence in others)
    return len(others) >= 8 and written > 0.25 * sum(p.numel() for p in model.parameters())


def _elements(model: nn.Module, occurrence: _Occurrence, axis: Axis) -> int:
    tensor: Tensor = getattr(model.get_submodule(occurrence.module), occurrence.tensor)
    return int((channel_of_position(occurrence.term, axis) >= 0).sum()) * tensor.numel() // tensor.shape[occurrence.dim]


def _member(axis: Axis, occurrence: _Occurrence) -> Member:
    return Member(occurrence.module, occurrence.tensor, occurrence.dim, _index(axis, occurrence.term), occurrence.role)


def _index(axis: Axis, term: Term) -> Tensor:
    """Positions of each channel of `axis` along a dimension, shape (channels, positions per channel)."""
    channel = channel_of_position(term, axis)
    positions = np.flatnonzero(channel >= 0)
    order = np.argsort(channel[positions], kind="stable")
    return torch.from_numpy(positions[order]).reshape(axis.size, -1)


def _left_over(
    model: nn.Module, followed: Followed, groups: Sequence[ChannelGroup], frozen: Sequence[Frozen]
) -> list[Frozen]:
    """Layers that are neither in a group nor refused: none may be omitted silently."""
    seen = {entry.name for entry in frozen}
    for group in groups:
        seen.update(member.module for member in group.members if member.role != "consumer")
    used = {name.rpartition(".")[0] for name, _ in followed.roles}
    left_over: list[Frozen] = []
    for name, module in model.named_modules():
        if name in seen or not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        reason = UNREACHED if name not in used else _reason(followed, name)
        left_over.append(Frozen(name, _width(module), reason))
    return left_over


def _reason(followed: Followed, module: str) -> str:
    weight = f"{module}.weight" if module else "weight"
    label = followed.parameters.get(weight)
    if label is None:
        return _UNWRITTEN
    written = [dim for dim in range(len(label.dims)) if followed.roles.get((weight, dim)) == "producer"]
    for leaf in (leaf for dim in written or [0] for leaf in leaves(label.dims[dim])):
        if leaf.reason is not None:
            return leaf.reason
    return _HEADS if written else UNREACHED


def _width(module: nn.Module) -> int:
    if isinstance(module, (nn.Linear, _ConvNd)):
        return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
    return max((parameter.shape[0] for parameter in module.parameters() if parameter.dim() > 0), default=0)
