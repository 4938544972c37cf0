"""Finding the description of a model with which it runs when channels are removed.

What operators show leaves some questions open: which of several equal widths an attribute holds, and whether code
takes one width from another tensor's shape. Each answer is tried on the model itself; a group for which none works is
frozen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn

from prunecli.inputs import Inputs
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.attributes import Question
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.traced import Assumptions, Frozen, Position
from prunecli.surgery.tracing.trial import Problem, first_problem, half_of


@dataclass(frozen=True)
class Description:
    """Groups under some assumptions.

    Attributes:
        followed: The run they come from.
        groups: What can shrink.
        frozen: Protected layers, with the reason.
        questions: By module, attributes that could hold something else.
        cuts: Positions at which one of several ways to cut a dimension was taken.
    """

    followed: Followed
    groups: list[ChannelGroup]
    frozen: list[Frozen]
    questions: Mapping[str, Sequence[Question]]
    cuts: frozenset[Position] = frozenset()


_Describe: TypeAlias = Callable[[Assumptions], Description]


def workable(
    model: nn.Module, describe: _Describe, inputs: Inputs, time_limit_s: float, start: Assumptions | None = None
) -> Assumptions:
    """Assumptions under which the model runs with half of all groups removed.

    Args:
        model: In evaluation mode on the CPU; not changed.
        describe: _Describes the model under some assumptions.
        inputs: Inputs the model accepts.
        time_limit_s: Seconds after which whatever still fails is frozen without looking for another answer.
        start: Where to begin.
    """
    deadline = time.monotonic() + time_limit_s
    current = start or Assumptions()
    while True:
        description = describe(current)
        groups = description.groups
        problem = _problem(model, current, groups, inputs)
        if problem is None:
            return current
        late = time.monotonic() > deadline
        better = None if late else _better(model, describe, inputs, current, description, problem)
        if better is None:
            better = _without_guilty(model, inputs, current, groups, problem, late=late)
        current = better


def _better(
    model: nn.Module,
    describe: _Describe,
    inputs: Inputs,
    current: Assumptions,
    description: Description,
    problem: Problem,
) -> Assumptions | None:
    kind = type(model.get_submodule(problem.module))
    progress: Assumptions | None = None
    for option in _options(model, current, description, problem.module):
        remaining = _problem(model, option, describe(option).groups, inputs)
        if remaining is None:
            return option
        if progress is None and type(model.get_submodule(remaining.module)) is not kind:
            progress = option  # the network runs further than before
    return progress


def _problem(
    model: nn.Module, assumptions: Assumptions, groups: Sequence[ChannelGroup], inputs: Inputs
) -> Problem | None:
    """Where the network stops. Once widths had to be chosen, two trials: widths may agree by chance."""
    for seed in (0, 1) if assumptions.choices else (0,):
        problem = first_problem(model, groups, half_of(groups, seed), inputs) if groups else None
        if problem is not None:
            return problem
    return None


def _options(model: nn.Module, current: Assumptions, description: Description, module: str) -> Iterator[Assumptions]:
    """Other answers for the failing module and the two around it, all modules of their classes alike."""
    for name in [module, *_around(module)][:3]:
        inner = model.get_submodule(name)
        kind = type(inner).__name__
        others = [
            replace(current, choices={**current.choices, (kind, attribute, path): other})
            for attribute, path, alternatives in description.questions.get(name, ())
            for other in range(alternatives)
            if other != current.choices.get((kind, attribute, path), 0)
        ]
        tied = [replace(current, tied=current.tied | {kind})]
        if not name or kind in current.tied or isinstance(inner, (nn.Sequential, nn.Linear, nn.ModuleList)):
            tied = []
        # In attention, reshape(B, N, C) with the input's C is by far the most common case.
        of_heads = any(
            group.kind != "channel" and member.module.startswith(name)
            for group in description.groups
            for member in group.members
        )
        yield from (*tied, *others) if of_heads else (*others, *tied)


def _around(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)] if module else []


def _without_guilty(
    model: nn.Module,
    inputs: Inputs,
    current: Assumptions,
    groups: Sequence[ChannelGroup],
    problem: Problem,
    *,
    late: bool,
) -> Assumptions:
    """Freezes those groups in the failing module that make it fail on their own; all of them if none does."""
    suspects = _suspects(groups, problem.module)
    keep = half_of(groups)
    guilty = [] if late else [g for g in suspects if first_problem(model, [g], keep, inputs) is not None]
    return frozen_too(current, [(group, problem.reason) for group in guilty or suspects])


def frozen_too(current: Assumptions, groups: Sequence[tuple[ChannelGroup, str]]) -> Assumptions:
    """The same assumptions with the channels of some groups frozen, each for its reason."""
    frozen = dict(current.frozen)
    for group, reason in groups:
        member = group.members[0]
        frozen[(member.name, member.dim, int(member.index[0, 0]))] = reason
    return replace(current, frozen=frozen)


def _suspects(groups: Sequence[ChannelGroup], module: str) -> list[ChannelGroup]:
    """Groups with members in the failing module, or in the closest one around it in which there are any."""
    for name in [module, *_around(module)]:
        prefix = f"{name}." if name else ""
        suspects = [
            group for group in groups if any(m.module == name or m.module.startswith(prefix) for m in group.members)
        ]
        if suspects:
            return suspects
    return list(groups)
