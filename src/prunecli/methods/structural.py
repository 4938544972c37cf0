"""The flow of every method that removes channels: trace, score, allocate, remove, verify, compensate, recalibrate."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Edit, Untouched
from prunecli.criteria.base import Criterion
from prunecli.errors import MethodError, VerificationError, unknown
from prunecli.measure.forward import Inputs
from prunecli.methods.allocation import Allocation, allocate
from prunecli.methods.params import StructuralParams
from prunecli.surgery.compensate import Compensation, compensate
from prunecli.surgery.groups import ChannelGroup, Trace
from prunecli.surgery.recalibrate import recalibrate_batchnorm
from prunecli.surgery.search import Assumptions
from prunecli.surgery.slice import remove
from prunecli.surgery.trace import trace, without
from prunecli.surgery.verify import faulty_groups, verify


@dataclass(frozen=True)
class StructuralOutcome:
    """A pruned model with everything that was decided on the way.

    Attributes:
        model: The smaller network; the original is unchanged.
        edits: One entry per group that lost channels.
        untouched: Every layer that kept its width or was held back, with the reason.
        requested: Share of prunable channels that was to be removed.
        achieved: Share that was removed.
        verify_error: Largest relative difference to the masked original in float64.
        compensated: Number of layers into which removed channels were folded.
        recalibrated: Number of batch normalisations whose statistics were measured anew.
        seconds: Wall time by phase.
    """

    model: nn.Module
    edits: list[Edit]
    untouched: list[Untouched]
    requested: float
    achieved: float
    verify_error: float
    compensated: int
    recalibrated: int
    seconds: dict[str, float]


def prune_structural(
    model: nn.Module,
    example_inputs: Inputs,
    criterion: Criterion,
    params: StructuralParams,
    *,
    keep_patterns: Sequence[str] = (),
    seed: int = 0,
    calibration: Iterable[Tensor] | None = None,
    compensation: Compensation = "none",
    recalibrate: bool = True,
    assumptions: Assumptions | None = None,
) -> StructuralOutcome:
    """Removes the least important channels of a copy of `model`.

    Args:
        model: Any module; not changed.
        example_inputs: Inputs the model accepts.
        criterion: Ranks units; see `prunecli.criteria.base`.
        params: How much to remove and where.
        keep_patterns: Layer names or shell patterns whose output width must stay.
        seed: Seeds criteria that draw random numbers.
        calibration: Input batches that can be gone through twice, for the two steps below; None leaves both out.
        compensation: How removed channels are folded into those that stay, after verification.
        recalibrate: Whether batch normalisation statistics are measured anew.
        assumptions: What an earlier trace of the same model found out, with groups that turned out faulty frozen.

    Raises:
        MethodError: A pattern matches no layer, or nothing can be removed.
        VerificationError: The result is not the masked original; nothing is returned.
    """
    clock = _Clock()
    traced = trace(model, example_inputs, prune_stem=params.prune_stem, heads=params.heads, assumptions=assumptions)
    untouched = [Untouched(name=f.name, channels=f.channels, reason=f.reason) for f in traced.frozen]
    groups, kept_by_pattern = _apply_patterns(model, traced, keep_patterns)
    untouched += kept_by_pattern
    clock.lap("trace")
    scores: dict[str, Tensor] = {}
    for name, value in criterion(model, groups, torch.Generator().manual_seed(seed)).items():
        if isinstance(value, str):
            untouched.append(Untouched(name=name, channels=traced.group(name).channels, reason=value))
        else:
            scores[name] = value
    groups = [group for group in groups if group.name in scores]
    allocation = allocate(groups, scores, params)
    edits = _edits(groups, allocation)
    if not edits:
        held = [f"{name}: {reason}" for name, reason in allocation.held_back.items()]
        reasons = held + [f"{entry.name}: {entry.reason}" for entry in untouched]
        first = reasons[0] if reasons else "the model has no convolution or linear layer"
        raise MethodError(f"nothing would be removed at ratio {params.ratio:g}; {first}")
    clock.lap("score")
    pruned = copy.deepcopy(model)
    remove(pruned, groups, allocation.keep)
    clock.lap("remove")
    try:
        error = verify(model, pruned, traced, allocation.keep, example_inputs)
    except VerificationError:
        faulty = faulty_groups(model, traced, allocation.keep, example_inputs)
        if not faulty:
            raise
        return prune_structural(
            model,
            example_inputs,
            criterion,
            params,
            keep_patterns=keep_patterns,
            seed=seed,
            calibration=calibration,
            compensation=compensation,
            recalibrate=recalibrate,
            assumptions=without(traced, faulty),
        )
    clock.lap("verify")
    compensated = recalibrated = 0
    if calibration is not None:
        # With new statistics to come, a constant shift before a normalisation does not matter.
        compensated = compensate(
            model, pruned, groups, allocation.keep, calibration, compensation, intercept=recalibrate
        )
        clock.lap("compensate")
        recalibrated = recalibrate_batchnorm(pruned, calibration) if recalibrate else 0
        clock.lap("recalibrate")
    untouched += [
        Untouched(name=group.name, channels=group.channels, reason=allocation.held_back[group.name])
        for group in groups
        if group.name in allocation.held_back
    ]
    return StructuralOutcome(
        model=pruned,
        edits=edits,
        untouched=untouched,
        requested=allocation.requested,
        achieved=allocation.achieved,
        verify_error=error,
        compensated=compensated,
        recalibrated=recalibrated,
        seconds=clock.laps,
    )


def _apply_patterns(
    model: nn.Module, traced: Trace, patterns: Sequence[str]
) -> tuple[list[ChannelGroup], list[Untouched]]:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise MethodError(unknown("layer pattern", pattern, names, see="prune inspect MODEL --layers"))
    groups: list[ChannelGroup] = []
    kept: list[Untouched] = []
    for group in traced.groups:
        matched = [
            (name, pattern)
            for name in group.modules("producer", "carrier")
            for pattern in patterns
            if any(fnmatchcase(part, pattern) for part in _with_containers(name))
        ]
        if matched:
            name, pattern = matched[0]
            kept.append(Untouched(name=name, channels=group.channels, reason=f"kept by pattern {pattern!r}"))
        else:
            groups.append(group)
    return groups, kept


def _with_containers(name: str) -> list[str]:
    """A layer's name and those of the modules around it: "layer1.0.conv1", "layer1.0", "layer1"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _edits(groups: Sequence[ChannelGroup], allocation: Allocation) -> list[Edit]:
    return [
        Edit(
            group=group.name,
            width_before=group.channels,
            width_after=len(allocation.keep[group.name]) * group.channels_per_unit,
            keep_indices=allocation.keep[group.name].tolist(),
            layers=list(group.modules("producer")),
        )
        for group in groups
        if len(allocation.keep[group.name]) < group.units
    ]


class _Clock:
    """Wall time by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now
