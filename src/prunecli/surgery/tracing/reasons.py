"""Why layers keep their width: every layer with a weight is in a group or has a reason."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.axes import leaves
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.labels import OUTPUT, PICKED, Followed
from prunecli.surgery.tracing.traced import Frozen

STEM = "first layer (protected; --prune-stem to include it)"
TIED_TO_STEM = "tied to the first layer, which is protected (--prune-stem to include both)"
STEMS = (STEM, TIED_TO_STEM)
"""Reasons that the protection of the first layer gives."""
UNREACHED = "not reached by the forward pass"
UNREACHED_UNTRAINED = (
    "not reached by the forward pass, and the network does not run in training mode on these inputs, where it may be: "
    "add what training needs, such as targets, to the example inputs"
)
UNREAD = "nothing reads its result, so no score can say which channels count"
HEADS = "attention heads (--heads removes whole heads)"
SINGLE = "it has one channel"
RIVAL = "its channels are divided in two ways, of which one is taken elsewhere"
UNWRITTEN = "no layer writes its channels alone"


def left_over(
    model: nn.Module, followed: Followed, groups: Sequence[ChannelGroup], frozen: Sequence[Frozen]
) -> list[Frozen]:
    """Layers that are neither in a group nor refused: none may be omitted silently."""
    seen = {entry.name for entry in frozen}
    for group in groups:
        seen.update(member.module for member in group.members if member.role != "consumer")
    left_over: list[Frozen] = []
    for name, module in model.named_modules():
        own = [tensor for tensor, value in module.named_parameters(recurse=False) if value.dim() > 1]
        weights = [f"{name}.{tensor}".lstrip(".") for tensor in own]
        if name in seen or not weights:
            continue
        reached = any(_source(followed, weight) in followed.met for weight in weights)
        reason = _reason(followed, weights) if reached else UNREACHED
        if not reached and followed.training is None:
            reason = UNREACHED_UNTRAINED
        left_over.append(Frozen(name or own[0], width_of(module), reason))
    return left_over


def _reason(followed: Followed, weights: Sequence[str]) -> str:
    """Why the width that a layer writes cannot change."""
    written = [(name, dim) for name in weights for dim in _written_dims(followed, name)]
    terms = [followed.parameters[name].dims[dim] for name, dim in written]
    terms = terms or [term for name in weights for term in followed.parameters[name].dims]
    if all(term.size == 1 for term in terms):
        return SINGLE
    reasons = [leaf.reason for term in terms for leaf in leaves(term) if leaf.reason is not None and leaf.size > 1]
    if reasons:
        # Gates are picked out of the rows of a recurrent layer, which says nothing about its units.
        others = [reason for reason in reasons if reason != PICKED]
        return next((reason for reason in reasons if reason == OUTPUT), (others or reasons)[0])
    heads = {leaf for term in followed.heads for leaf in leaves(term)}
    if any(leaf in heads for term in terms for leaf in leaves(term)):
        return HEADS
    return RIVAL if written else UNWRITTEN


def _written_dims(followed: Followed, name: str) -> list[int]:
    source = _source(followed, name)
    return [
        dim for dim in range(len(followed.parameters[name].dims)) if followed.roles.get((source, dim)) == "producer"
    ]


def _source(followed: Followed, name: str) -> str:
    """The name under which a weight that has several was followed."""
    label = followed.parameters[name]
    return label.source[0] if label.source else name


def width_of(module: nn.Module) -> int:
    """How many channels a layer writes."""
    if isinstance(module, (nn.Linear, _ConvNd)):
        return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return int(module.hidden_size)
    return max((parameter.shape[0] for parameter in module.parameters() if parameter.dim() > 0), default=0)
