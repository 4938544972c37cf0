"""Whether factors of attention scores follow head_dim, or are constants in the code that happen to fit it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.copying import copied
from prunecli.inputs import Inputs, call
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.surgery.tracing.trial import half_of


class _Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run and the plain numbers they get, constants of no dimensions included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[str] = []
        self.numbers: list[list[float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        numbers = [float(leaf) for leaf in leaves if isinstance(leaf, float)]
        numbers += [float(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() == 0]
        self.operators.append(func.overloadpacket.__name__)
        self.numbers.append(numbers)
        return func(*args, **(kwargs or {}))


def constant_factors(
    model: nn.Module,
    inputs: Inputs,
    followed: Followed,
    groups: Sequence[ChannelGroup],
    factors: Mapping[str, Sequence[int]],
) -> list[ChannelGroup]:
    """Groups of head dimensions whose factors stay the same when half of the dimensions are gone.

    Args:
        model: In evaluation mode on the CPU; not changed.
        inputs: Inputs it accepts.
        followed: Its run.
        groups: What can shrink.
        factors: For each group the positions, among the operators of the run, of those that multiply by a power of
            head_dim.
    """
    rescaled = [group for group in groups if group.scales]
    if not rescaled:
        return []
    trial = copied(model)
    remove(trial, groups, half_of(groups))
    seen = _Numbers()
    try:
        with torch.no_grad(), plain_kernels(), seeded(), seen:
            call(trial, inputs)
    except Exception:  # the proof will say what is wrong
        return []
    if seen.operators != [record.operator for record in followed.records]:
        return []
    return [
        group
        for group in rescaled
        if factors.get(group.name)
        and all(set(followed.records[at].numbers) <= set(seen.numbers[at]) for at in factors[group.name])
    ]
