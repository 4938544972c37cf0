"""Which groups take part: keep patterns, ratios by layer, and the scope that suits a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from prunecli.checkpoint.manifest import Untouched
from prunecli.errors import MethodError, unknown
from prunecli.methods.params import StructuralParams
from prunecli.naming import layer_list, option, spoken
from prunecli.patterns import chosen, matches, split_patterns, with_modules
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.traced import Trace

_ALIKE = ("LayerNorm", "RMSNorm", "Attention")
"""Parts of class names that make a network's blocks worth ranking each with its like."""

_RESIDUAL = "residual stream (protected; --residual to include it)"


def with_scope(model: nn.Module, params: StructuralParams) -> StructuralParams:
    """Replaces the scope "auto": isomorphic for networks with attention or layer normalisation, global for others."""
    if params.scope != "auto":
        return params
    alike = any(part in type(module).__name__ for module in model.modules() for part in _ALIKE)
    return replace(params, scope="isomorphic" if alike else "global")


def apply_patterns(
    model: nn.Module, traced: Trace, patterns: str | Sequence[str]
) -> tuple[list[ChannelGroup], list[Untouched]]:
    """Splits the groups into those that may shrink and those a pattern keeps.

    Args:
        model: The network.
        traced: Its trace.
        patterns: Names or shell patterns of layers, or of modules around them.

    Raises:
        MethodError: A pattern matches nothing.
    """
    require_matches(model, patterns)
    groups: list[ChannelGroup] = []
    kept: list[Untouched] = []
    for group in traced.groups:
        matched = [
            (name, pattern)
            for name in (*group.modules("producer", "carrier"), *(emission.module for emission in group.emissions))
            for pattern in split_patterns(patterns)
            if matches(name, pattern)
        ]
        if matched:
            name, pattern = matched[0]
            kept.append(Untouched(name=name, channels=group.channels, reason=f"kept by pattern {pattern!r}"))
        else:
            groups.append(group)
    return groups, kept


def require_matches(model: nn.Module, patterns: str | Sequence[str]) -> None:
    """Checks that every pattern of `keep` matches a module.

    Raises:
        MethodError: One does not.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in split_patterns(patterns):
        if not chosen(names, pattern):
            wrong = unknown("layer pattern", pattern, names, see=layer_list())
            raise MethodError(f"{option('keep', pattern)}: {wrong}")


def hold_residual(traced: Trace, groups: Sequence[ChannelGroup]) -> tuple[list[ChannelGroup], list[Untouched]]:
    """Splits groups into ordinary ones and residual streams.

    A residual stream is written again after some layer has read it.
    """
    inner = traced.part.trace if traced.part is not None else traced
    prefix = f"{traced.part.module}." if traced.part is not None else ""
    called = inner.followed.order if inner.followed is not None else []
    position = {prefix + name: index for index, name in enumerate(called)}
    held = []
    for group in groups:
        read, written = (
            [position[name] for name in group.modules(role) if name in position] for role in ("consumer", "producer")
        )
        if read and written and min(read) <= max(written):
            held.append(group)
    kept = [Untouched(name=group.name, channels=group.channels, reason=_RESIDUAL) for group in held]
    return [group for group in groups if group not in held], kept


def ratios_by_group(traced: Trace, groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> dict[str, float]:
    """The ratio of every group that `ratios` names.

    Args:
        traced: The trace, which knows why other layers cannot shrink.
        groups: The groups that may shrink.
        ratios: From names or patterns (of groups, or of modules around them) to ratios.

    Raises:
        MethodError: A pattern matches no group that may shrink, or two patterns match the same one.
    """
    by_group: dict[str, float] = {}
    by: dict[str, str] = {}
    for pattern, ratio in ratios.items():
        exact = [group.name for group in groups if group.name == pattern]
        matched = exact or [group.name for group in groups if matches(group.name, pattern)]
        if not matched:
            raise MethodError(_why_nothing(traced, groups, pattern))
        for name in matched:
            if name in by:
                raise MethodError(
                    f"{option('layer_ratio')}: {by[name]!r} and {pattern!r} both match {name}; write patterns that do "
                    "not overlap"
                )
            by[name] = pattern
            by_group[name] = ratio
    return by_group


def _why_nothing(traced: Trace, groups: Sequence[ChannelGroup], pattern: str) -> str:
    asked = f"{option('layer_ratio')}: {pattern!r}"
    for group in groups:
        if any(matches(name, pattern) for name in group.modules("producer", "carrier")):
            return f"{asked} shares its channels with {group.name}; use that name"
    for frozen in traced.frozen:
        if matches(frozen.name, pattern):
            return f"{asked} matches nothing that can shrink; {frozen.name}: {spoken(frozen.reason)}"
    if any(matches(name, pattern) for group in traced.groups for name in group.modules("producer", "carrier")):
        return f"{asked} matches only layers that {option('keep')} holds; leave out one of the two"
    known = with_modules(group.name for group in groups)
    return f"{option('layer_ratio')}: " + unknown("layer pattern", pattern, known, see=layer_list())
