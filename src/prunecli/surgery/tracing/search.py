"""Removing half of everything from a copy, to see whether the network still runs.

What operators and watched numbers do not show, such as a width that is written in the code, makes the network stop.
The groups at fault are frozen, with the error as the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prunecli.ranks import from_first
from prunecli.surgery.axes import leaves
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.traced import Assumptions, Frozen, Position, position_of
from prunecli.surgery.tracing.trial import Problem, Trial, half_of


@dataclass(frozen=True)
class Description:
    """Groups under some assumptions.

    Attributes:
        followed: The run they come from.
        groups: What can shrink.
        frozen: Protected layers, with the reason.
        cuts: Positions at which one of several ways to cut a dimension was taken.
        factors: For groups of head dimensions the operators of the run that multiply by a power of head_dim.
    """

    followed: Followed
    groups: list[ChannelGroup]
    frozen: list[Frozen]
    cuts: frozenset[Position] = frozenset()
    factors: Mapping[str, Sequence[int]] = field(default_factory=dict)


def workable(
    trial: Trial, describe: Callable[[Assumptions], Description], time_limit_s: float, start: Assumptions | None = None
) -> tuple[Assumptions, Description]:
    """Assumptions under which the model runs with half of all groups removed, and the groups under them.

    Args:
        trial: Runs the model without some channels.
        describe: Describes the model under some assumptions.
        time_limit_s: Seconds after which all groups that still fail are frozen without looking for the one at fault.
        start: Where to begin.
    """
    deadline = time.monotonic() + time_limit_s
    current = start or Assumptions()
    while True:
        description = describe(current)
        groups = description.groups
        problem = trial.first_problem(groups, half_of(groups)) if groups else None
        if problem is None:
            return current, description
        late = from_first(time.monotonic() > deadline)  # all processes freeze the same
        current = frozen_too(current, _guilty(trial, description, problem, late=late))


def _guilty(trial: Trial, description: Description, problem: Problem, *, late: bool) -> list[tuple[ChannelGroup, str]]:
    """The groups to freeze, with reasons.

    Those whose width the failing module, or one around it, gets from a number in the code; else those that make the
    failing module fail on their own; else all in it.
    """
    groups, module = description.groups, problem.module
    written = _written(description.followed)
    for name in [module, *_around(module)]:
        blamed = [group for group in groups if group.axis is not None and (id(group.axis), name) in written]
        if blamed:
            where = name or "the model itself"
            why = "written in the code, or made in a way that cannot be watched"
            numbers = ((group, written[id(group.axis), name]) for group in blamed)
            return [(group, f"{where} uses a plain number as its width ({number}; {why})") for group, number in numbers]
    suspects = _suspects(groups, module)
    keep = half_of(groups)
    guilty = [] if late else [group for group in suspects if trial.first_problem([group], keep) is not None]
    return [(group, problem.reason) for group in guilty or suspects]


def _written(followed: Followed) -> Mapping[tuple[int, str], int]:
    """Sizes that are numbers in the code, by axis and module."""
    return {
        (id(leaf), module): number
        for number, term, module in followed.uses.written
        for leaf in leaves(term)
        if leaf.reason is None
    }


def _around(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)] if module else []


def frozen_too(current: Assumptions, groups: Sequence[tuple[ChannelGroup, str]]) -> Assumptions:
    """The same assumptions with the channels of some groups frozen, each for its reason."""
    frozen = dict(current.frozen)
    for group, reason in groups:
        frozen[position_of(group)] = reason
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
