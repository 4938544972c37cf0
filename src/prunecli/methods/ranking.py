"""From a network to ranked channels: trace, select the groups that may shrink, score them.

Everything that ranks goes through here: pruning, sensitivity, coverage, and methods that train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Untouched
from prunecli.collective import agreed
from prunecli.criteria.base import Calibration, Criterion
from prunecli.errors import MethodError
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.selection import apply_patterns, hold_residual
from prunecli.naming import spoken
from prunecli.patterns import split_patterns
from prunecli.phases import phase
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.labels import OUTPUT
from prunecli.surgery.tracing.reasons import STEMS
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
    settings: dict[str, Any] = {
        "prune_stem": request.params.prune_stem,
        "heads": request.params.heads,
        "only": request.params.only,
        "outputs": split_patterns(request.params.outputs) or None,
    }
    traced = request.trace if assumptions is None else None
    if traced is None:
        made = trace(model, request.example_inputs, **settings, assumptions=assumptions)
        traced = replace(made, settings=settings)
    else:
        _check_trace(model, traced, settings)
    groups, held = apply_patterns(model, traced, request.keep)
    if not getattr(request.params, "residual", True):
        groups, residual = hold_residual(traced, groups)
        held += residual
    frozen = [Untouched(name=f.name, channels=f.channels, reason=f.reason) for f in traced.frozen]
    return Selection(traced, tuple(groups), (*frozen, *held))


def _check_trace(model: nn.Module, traced: Trace, settings: Mapping[str, Any]) -> None:
    """Refuses an earlier trace that was made for something else.

    Raises:
        MethodError: It was made with other settings, or for a network of other shapes.
    """
    if traced.settings != settings:
        asked = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise MethodError(f"the trace handed in was made with other settings than {asked}; leave it out")
    inner, prefix = (traced.part.trace, f"{traced.part.module}.") if traced.part is not None else (traced, "")
    assert inner.followed is not None
    shapes = {prefix + name: [term.size for term in label.dims] for name, label in inner.followed.parameters.items()}
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    present = {name: list(tensor.shape) for name, tensor in tensors if name.startswith(prefix)}
    if shapes != present:
        changed = next(name for name in {**shapes, **present} if shapes.get(name) != present.get(name))
        raise MethodError(f"the trace handed in is of another network: {changed} has another shape; leave it out")


@phase("score")
def score(model: nn.Module, selection: Selection, criterion: Criterion, calibration: Calibration) -> Ranking:
    """Scores the selected groups; those that cannot be ranked become untouched.

    Raises:
        MethodError: Scores are NaN or infinite.
        RanksDiffer: Processes that work together come to different scores.
    """
    scores: dict[str, Tensor] = {}
    untouched = list(selection.untouched)
    widths = {group.name: group.channels for group in selection.groups}
    for name, value in agreed("the scores", criterion(model, selection.groups, calibration)).items():
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
    """The reason that holds most of the network: protected first and last layers count only if there is no other."""
    channels: dict[str, int] = {}
    for entry in untouched:
        channels[entry.reason] = channels.get(entry.reason, 0) + entry.channels
    causes = {reason: count for reason, count in channels.items() if reason not in (*STEMS, OUTPUT)} or channels
    if not causes:
        return _NOTHING
    cause = max(causes, key=lambda reason: causes[reason])
    names = [entry.name for entry in untouched if entry.reason == cause]
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {spoken(cause)}"


_NOTHING = "the model has no convolution or linear layer"
