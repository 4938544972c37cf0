"""From a network to ranked channels: trace, select the groups that may shrink, score them.

Everything that ranks goes through here: pruning, sensitivity, coverage, and methods that train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Untouched
from prunecli.criteria.base import Calibration, Criterion
from prunecli.errors import MethodError
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.selection import apply_patterns, hold_residual
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.traced import Assumptions, Trace


@dataclass(frozen=True)
class Selection:
    """Which groups take part.

    Attributes:
        trace: The trace of the network.
        groups: Groups that may shrink.
        untouched: Layers that keep their width, and why.
    """

    trace: Trace
    groups: tuple[ChannelGroup, ...]
    untouched: tuple[Untouched, ...]


@dataclass(frozen=True)
class Ranking(Selection):
    """Groups that may shrink, and can be ranked.

    Attributes:
        scores: For each group name, scores of shape (units,), float64; the lowest are removed first.
    """

    scores: dict[str, Tensor]


def select(model: nn.Module, request: PruneRequest, assumptions: Assumptions | None = None) -> Selection:
    """Traces `model` and selects the groups that may shrink.

    Args:
        model: The network.
        request: Patterns and parameters, and an earlier trace, which is used unless there are `assumptions`.
        assumptions: Answers that an earlier trace found by trial, for a network that has changed since.

    Raises:
        MethodError: A pattern matches no layer.
        ModelError: The network cannot be traced.
    """
    traced = request.trace if assumptions is None else None
    if traced is None:
        traced = _trace_for(model, request.params, request, assumptions)
    groups, held = apply_patterns(model, traced, request.keep)
    if not getattr(request.params, "residual", True):
        groups, residual = hold_residual(traced, groups)
        held += residual
    frozen = [Untouched(name=f.name, channels=f.channels, reason=f.reason) for f in traced.frozen]
    return Selection(traced, tuple(groups), (*frozen, *held))


def _trace_for(
    model: nn.Module, params: StructuralParams, request: PruneRequest, assumptions: Assumptions | None = None
) -> Trace:
    """Traces `model` as the parameters say; `PruneRequest.trace` can take the result."""
    return trace(
        model,
        request.example_inputs,
        prune_stem=params.prune_stem,
        heads=params.heads,
        only=params.only,
        assumptions=assumptions,
    )


def score(model: nn.Module, selection: Selection, criterion: Criterion, calibration: Calibration) -> Ranking:
    """Scores the selected groups; those that cannot be ranked become untouched.

    Raises:
        MethodError: Scores are NaN or infinite.
    """
    scores: dict[str, Tensor] = {}
    untouched = list(selection.untouched)
    widths = {group.name: group.channels for group in selection.groups}
    for name, value in criterion(model, selection.groups, calibration).items():
        if isinstance(value, str):
            untouched.append(Untouched(name=name, channels=widths[name], reason=value))
        elif not bool(torch.isfinite(value).all()):
            raise MethodError(f"{name}: its scores are not finite; check the weights and the data")
        else:
            scores[name] = value
    groups = tuple(group for group in selection.groups if group.name in scores)
    return Ranking(selection.trace, groups, tuple(untouched), scores)


def rank(model: nn.Module, request: PruneRequest) -> Ranking:
    """Traces, selects and scores.

    Raises:
        MethodError: A pattern matches no layer, or scores are NaN or infinite.
        ModelError: The network cannot be traced.
    """
    criterion: Criterion = get_structural(request.method).load()
    return score(model, select(model, request), criterion, request.calibrated())


def why_nothing(untouched: Sequence[Untouched]) -> str:
    """The most helpful reason why nothing can shrink: one that names an option, else the first."""
    reasons = [f"{entry.name}: {entry.reason}" for entry in untouched]
    return next((reason for reason in reasons if "--" in reason), reasons[0] if reasons else _NOTHING)


_NOTHING = "the model has no convolution or linear layer"
