"""Equal random numbers for a network and its pruned copy, aligned by position.

A pruned network draws fewer numbers, so equal seeds alone would give the channels that stay other dropout masks and
other noise. The reference run notes what it draws; the pruned run gets the same numbers without the removed positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Draws = list[list[Tensor]]
"""For every random operator in order its results, without the removed positions."""


def is_random(func: Any) -> bool:
    """Whether an operator draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


class Replayed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives random operators the results that a reference run has noted.

    Args:
        draws: What the reference run has drawn.

    Attributes:
        aligned: Whether every operator so far drew a tensor of the shape that the reference run has left over.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws
        self._next = 0
        self.aligned = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not is_random(func):
            return out
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        noted = self._draws[self._next] if self._next < len(self._draws) else []
        self._next += 1
        if [tuple(tensor.shape) for tensor in results] != [tuple(tensor.shape) for tensor in noted]:
            self.aligned = False
            return out
        if func.overloadpacket.__name__ == "native_dropout" and args[2] is not False:
            kept = noted[1]
            results[1].copy_(kept)
            results[0].copy_(args[0] * kept / (1 - args[1]) if args[1] < 1 else torch.zeros_like(args[0]))
            return out
        for result, right in zip(results, noted, strict=True):
            result.copy_(right)
        return out


def noting(draws: Draws, func: Any, results: list[Tensor], kept_alone: Callable[[int, Tensor], Tensor]) -> None:
    """Adds an operator's results to `draws` if it is random.

    Args:
        draws: What was drawn so far.
        func: The operator.
        results: Its results.
        kept_alone: The n-th result without its removed positions.
    """
    if is_random(func):
        draws.append([kept_alone(index, result).clone() for index, result in enumerate(results)])
