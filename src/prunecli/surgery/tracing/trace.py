"""Which parameters are one channel: groups from following every channel through the model's operators.

`follow` labels every dimension of every tensor with terms over axes. An axis that no rule has frozen, and that some
layer writes, is a group: its members are all parameter and buffer dimensions whose terms contain it. Half of all
groups is then removed from a trial copy, which has to run, in training mode too; `verify` compares numbers on every
actual removal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import converted, copied
from prunecli.errors import DataDependentError, ModelError
from prunecli.inputs import Inputs, cast_inputs, doubled_batch, output_tensors
from prunecli.naming import option
from prunecli.phases import phase
from prunecli.surgery.axes import freeze_position
from prunecli.surgery.tracing.adapters import tie_known_modules
from prunecli.surgery.tracing.attention import temperatures
from prunecli.surgery.tracing.attributes import follows_its_tensors, width_attributes
from prunecli.surgery.tracing.closures import refuse_closures
from prunecli.surgery.tracing.emissions import with_emissions
from prunecli.surgery.tracing.equations import settle
from prunecli.surgery.tracing.factors import constant_factors
from prunecli.surgery.tracing.follow import NotRunningError, follow
from prunecli.surgery.tracing.grouping import groups_of, index_of
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.part import parts_that_can_be_followed, trace_part
from prunecli.surgery.tracing.reasons import left_over
from prunecli.surgery.tracing.search import Description, frozen_too, workable
from prunecli.surgery.tracing.shared_storage import refuse_shared_storage
from prunecli.surgery.tracing.traced import Assumptions, Trace, position_of
from prunecli.surgery.tracing.trial import Trial
from prunecli.surgery.tracing.watched import Uses, watch_attributes


@phase("trace")
def trace(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    prune_stem: bool = False,
    heads: bool = False,
    only: str = "",
    outputs: Sequence[str] | None = None,
    time_limit_s: float = 120.0,
    assumptions: Assumptions | None = None,
    values: bool = False,
) -> Trace:
    """Finds the channel groups of `model`.

    Args:
        model: Any module; frozen parameters are included. It is not changed.
        example_inputs: Inputs of a shape the model accepts, for instance (1, 3, 224, 224).
        prune_stem: Whether the first convolution's width may change. A patch embedding is not
            protected if linear layers write its channels too.
        heads: Whether attention shrinks by whole heads, instead of by the same dimensions of every head.
        only: Name of a module to trace alone, on its inputs in the model.
        outputs: Names of the outputs that keep their widths; None for those that `default_outputs` chooses.
        time_limit_s: Seconds after which groups that make the model fail are frozen without looking for the cause.
        assumptions: What an earlier trace of the same model learned; trials start from there.
        values: Whether everything is computed from the beginning, and not only where values are read.

    Raises:
        ModelError: The model cannot be run on these inputs, or what it computes depends on their values.
    """
    if not output_tensors(example_inputs):
        raise ModelError("example_inputs contains no tensor; it must be a tensor, or a tuple, mapping or list of them")
    if only:
        if outputs:
            raise ModelError(
                f"{option('outputs')} and {option('only')} exclude each other: a part keeps all its outputs"
            )

        settings: dict[str, Any] = {"time_limit_s": time_limit_s, "assumptions": assumptions, "values": values}
        alone = partial(trace, prune_stem=True, heads=heads, outputs=(), **settings)
        return trace_part(model, example_inputs, only, alone)
    _refuse_what_cannot_run(model)
    refuse_closures(model)
    run = _run(model, example_inputs, outputs, values=values)
    traced, followed, inputs = run.model, run.followed, run.inputs

    def described(assumptions: Assumptions) -> Description:
        return _describe(traced, followed, assumptions, prune_stem=prune_stem, heads=heads)

    training_inputs = None
    if followed.training is not None:
        training_inputs = inputs if followed.training_samples == 1 else doubled_batch(inputs)
    trial = Trial(traced, inputs, training_inputs)
    answers, final = workable(trial, described, time_limit_s, assumptions)
    constant = constant_factors(traced, inputs, followed, final.groups, final.factors)
    if constant:
        answers = replace(answers, constant=answers.constant.union(position_of(group) for group in constant))
        final = described(answers)
    frozen = [*final.frozen, *left_over(traced, followed, final.groups, final.frozen)]
    return Trace(tuple(final.groups), tuple(frozen), followed, run.dtype, replace(answers, preferred=final.cuts))


@dataclass(frozen=True)
class _Run:
    """A copy of a network that was followed, its inputs, and what was learned."""

    model: nn.Module
    inputs: Inputs
    dtype: torch.dtype
    followed: Followed


def _run(model: nn.Module, example_inputs: Inputs, outputs: Sequence[str] | None, *, values: bool) -> _Run:
    """Follows a copy in float64, or in float32 if it casts to that inside.

    Raises:
        DataDependentError: Values decide what runs; the message names parts that can be followed.
        ModelError: It cannot be copied, or does not run on the inputs.
    """
    traced = converted(model, torch.float64, sparing=not values).eval()
    inputs = cast_inputs(example_inputs, device="cpu", dtype=torch.float64)
    refuse_shared_storage(model, traced, inputs)
    originals = {id(tensor): name for name, tensor in _named_tensors(model)}
    try:
        try:
            return _Run(traced, inputs, torch.float64, _followed(traced, inputs, outputs, originals, values=values))
        except NotRunningError:
            inputs, single = cast_inputs(inputs, dtype=torch.float32), traced.float()
            return _Run(single, inputs, torch.float32, _followed(single, inputs, outputs, originals, values=values))
    except DataDependentError as error:
        parts = [option("only", name) for name in parts_that_can_be_followed(traced, inputs)[:3]]
        offer = f"; what can be pruned: {' or '.join(parts)}" if parts else ""
        raise DataDependentError(f"{error}{offer}") from error


def _followed(
    model: nn.Module, inputs: Inputs, outputs: Sequence[str] | None, originals: Mapping[int, str], *, values: bool
) -> Followed:
    """Follows a copy with watched attributes that shares all tensors with `model`.

    Shapes suffice for most networks; what is wrong without values is tried again with them.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for computing in (True,) if values else (False, True):
        watched = copied(model, dict(shared))
        uses = Uses()
        watch_attributes(watched, follows_its_tensors, uses.equalities)
        try:
            return follow(
                watched, inputs, training=True, outputs=outputs, originals=originals, uses=uses, values=computing
            )
        except NotRunningError:  # code may insist on plain integers
            if computing:
                return follow(model, inputs, training=True, outputs=outputs, originals=originals)
        except ModelError:
            if computing:
                raise
    raise AssertionError("the last attempt returns or raises")


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _refuse_what_cannot_run(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{name or 'the model'} is compiled by TorchScript; pass the module it was compiled from")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter):
            raise ModelError(f"{name} has no values yet; load weights or run the model once")


def without(traced: Trace, faulty: Mapping[str, str]) -> Assumptions:
    """Assumptions for tracing again after removing some groups was found to differ from masking them.

    Where a group's queries are rescaled, the assumption that the code's divisor follows head_dim is withdrawn
    first. Otherwise the group is frozen, for its reason.
    """
    assert traced.assumptions is not None
    if traced.part is not None:
        return without(traced.part.trace, traced.part.own(faulty))
    groups = {name: traced.group(name) for name in faulty}
    rescaled = [position_of(group) for group in groups.values() if group.scales]
    constant = traced.assumptions.constant.union(rescaled)
    others = [(group, faulty[name]) for name, group in groups.items() if not group.scales]
    return frozen_too(replace(traced.assumptions, constant=constant), others)


def _describe(
    model: nn.Module, followed: Followed, assumptions: Assumptions, *, prune_stem: bool, heads: bool
) -> Description:
    tie_known_modules(model, followed)
    for (tensor, dim, position), reason in assumptions.frozen.items():
        freeze_position(followed.parameters[tensor].dims[dim], position, reason)
    held = settle(followed.uses, followed.held)
    groups, frozen, cuts = groups_of(model, followed, assumptions.preferred, prune_stem=prune_stem, heads=heads)
    by_axis = {group.axis: group for group in groups if group.axis is not None}
    scales, roots, factors = temperatures(followed, by_axis, assumptions.constant)
    widths = width_attributes(model, followed, held, by_axis)
    complete = [
        replace(
            group,
            widths=tuple(width for width in (*widths, *roots) if group.name in width.groups),
            scales=tuple(scale for scale in scales if scale.group == group.name),
        )
        for group in groups
    ]
    return Description(followed, with_emissions(model, followed, complete, index_of), frozen, cuts, factors)
