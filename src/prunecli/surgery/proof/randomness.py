"""Equal random numbers for a network and its pruned copy, aligned by position.

A pruned network draws fewer numbers, so equal seeds alone would give the channels that stay other dropout masks and
other noise. The reference run notes what it draws; the pruned run gets the same numbers without the removed positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Draw:
    """What one random operator got and gave, without the removed positions.

    Attributes:
        given: Its tensors, if its results depend on their values.
        results: What it drew.
    """

    given: list[Tensor]
    results: list[Tensor]


Draws = list[Draw]
_DEPENDENT = ("bernoulli", "normal", "poisson", "multinomial", "binomial", "rrelu_with_noise", "_sample_dirichlet",
              "_standard_gamma")  # fmt: skip
"""Operators whose results depend on the values of tensors: probabilities, means and the like."""
_TOLERANCE = 1e-6


def is_random(func: Any) -> bool:
    """Whether an operator draws from torch's generator."""
    return torch.Tag.nondeterministic_seeded in func.tags


def _given(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """The tensors whose values an operator's results depend on; of `bernoulli_(0.5)` and the like there are none."""
    if func.overloadpacket.__name__.rstrip("_") not in _DEPENDENT or func._overloadname in ("float", "p"):
        return []
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    if func.overloadpacket.__name__.startswith("rrelu"):
        return tensors[:1]  # the second receives the noise
    return tensors[1:] if func._schema.is_mutable else tensors


class Replayed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives random operators the results that a reference run has noted.

    Args:
        draws: What the reference run has drawn.

    Attributes:
        aligned: Whether every operator so far got what the reference run gave it, and drew a tensor of the same shape.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._draws = draws
        self._next = 0
        self.aligned = True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = [tensor.clone() for tensor in _given(func, args)] if is_random(func) else []
        out = func(*args, **(kwargs or {}))
        if not is_random(func):
            return out
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        noted = self._draws[self._next] if self._next < len(self._draws) else Draw([], [])
        self._next += 1
        if not _alike(given, noted.given) or [t.shape for t in results] != [t.shape for t in noted.results]:
            self.aligned = False
            return out
        if func.overloadpacket.__name__ == "native_dropout" and args[2] is not False:
            kept = noted.results[1]
            results[1].copy_(kept)
            results[0].copy_(args[0] * kept / (1 - args[1]) if args[1] < 1 else torch.zeros_like(args[0]))
            return out
        for result, right in zip(results, noted.results, strict=True):
            result.copy_(right)
        return out


class Repeated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every random operator draw as if it were the first, so that nothing depends on how many came before.

    A network without some of its layers draws fewer numbers, and so may the code between them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if is_random(func):
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))


def _alike(given: list[Tensor], noted: list[Tensor]) -> bool:
    return len(given) == len(noted) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for a, b in zip(given, noted, strict=True)
    )


def given_to(func: Any, args: tuple[Any, ...], kept_alone: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What a random operator is about to get, without removed positions, if its results depend on it."""
    return [kept_alone(tensor).clone() for tensor in _given(func, args)] if is_random(func) else []


def noting(
    draws: Draws, func: Any, given: list[Tensor], results: list[Tensor], kept_alone: Callable[[int, Tensor], Tensor]
) -> None:
    """Adds an operator's results to `draws` if it is random.

    Args:
        draws: What was drawn so far.
        func: The operator.
        given: From `given_to`.
        results: Its results.
        kept_alone: The n-th result without its removed positions.
    """
    if is_random(func):
        draws.append(Draw(given, [kept_alone(index, result).clone() for index, result in enumerate(results)]))
