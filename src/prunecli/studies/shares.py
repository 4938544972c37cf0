"""How much of a network a ratio implies, what was left alone, and for which kinds of reasons."""

from __future__ import annotations

import re
from collections import Counter

from torch import nn

from prunecli.surgery.tracing.labels import OUTPUT
from prunecli.surgery.tracing.reasons import STEMS
from prunecli.surgery.tracing.traced import Frozen, Trace

_NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|[\w#]+(?:\.[\w#]+)+|\b[a-z]+_\w+|(?<=what )\S+(?= computes)")
_ALIKE = re.compile(r"(--only \.\.\.)(?: or --only \S+)+")
_NUMBERS = re.compile(r"\b\d+(?:\.\d+)?(?:e[+-]?\d+)?(?: ?x ?\d+)*")
_LONGEST = 240


def kind_of(reason: str) -> str:
    """A reason without the names and numbers of one network, so that equal kinds can be counted.

    Args:
        reason: One line; names of modules become "...", numbers "N"; operators stay.
    """
    kind = _NAMES.sub("...", _NUMBERS.sub("N", reason))
    return _ALIKE.sub(r"\1", kind).strip()[:_LONGEST]


def kinds_of_reasons(model: nn.Module, traced: Trace) -> dict[str, float]:
    """Why layers keep their width, the first and the output layers included: the share of parameters of each kind.

    Args:
        model: The network that was traced.
        traced: Its trace.

    Returns:
        The share of all parameters that the layers hold, by kind of reason, the largest first.
    """
    whole = sum(p.numel() for p in model.parameters()) or 1
    shares: Counter[str] = Counter()
    for entry in traced.frozen:
        shares[kind_of(entry.reason)] += _own_parameters(model, entry.name)
    return {kind: round(count / whole, 4) for kind, count in shares.most_common()}


def held_share(model: nn.Module, traced: Trace) -> float:
    """Share of the parameters in layers that kept their width, not counting the first and the output layers."""
    count = sum(_own_parameters(model, name) for name in {entry.name for entry in _held(traced)})
    return count / max(1, sum(p.numel() for p in model.parameters()))


def most_common_reason(traced: Trace) -> str:
    """The reason that the most layers have; empty if every layer can shrink."""
    reasons = Counter(entry.reason for entry in _held(traced))
    return reasons.most_common(1)[0][0] if reasons else ""


def implied_share(model: nn.Module, traced: Trace, ratio: float) -> float:
    """Parameters that stay if every group loses exactly `ratio` of its channels, as a share of all."""
    shares: dict[str, dict[int, float]] = {}
    for group in traced.groups:
        removed = (group.units - max(1, round(group.units * (1 - ratio)))) / group.units
        for member in group.members:
            tensor = getattr(model.get_submodule(member.module), member.tensor)
            lost = member.index.numel() / tensor.shape[member.dim] * removed
            by_dim = shares.setdefault(member.name, {})
            by_dim[member.dim] = by_dim.get(member.dim, 0.0) + lost
    total = kept = 0.0
    for name, parameter in model.named_parameters():
        share = 1.0
        for removed in shares.get(name, {}).values():
            share *= 1 - removed
        total += parameter.numel()
        kept += parameter.numel() * share
    return kept / total if total else 1.0


def _held(traced: Trace) -> list[Frozen]:
    return [entry for entry in traced.frozen if entry.reason not in (*STEMS, OUTPUT)]


def _own_parameters(model: nn.Module, name: str) -> int:
    own = dict(model.named_modules()).get(name)
    if own is None:  # a parameter that no layer holds, such as the class token
        return model.get_parameter(name).numel()
    return sum(p.numel() for p in own.parameters(recurse=False))
