"""Work that processes share: items in turns, what the first of them alone finds out, and values that have to agree.

As in `prunecli.ranks`, every process has to call these functions, in the same order; alone they cost nothing.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunecli.errors import Interrupted, RanksDiffer
from prunecli.ranks import alone, digest, from_first, gathered, rank, together, world_size

T = TypeVar("T")
R = TypeVar("R")

ROUNDING = 1e-3
"""How far what is computed in full by every process may differ, relative to the largest number of a tensor.

Nothing differs on machines of one kind. On others the same sums are taken in another order, and solving equations with
them makes much of that. Whatever process 0 has is then what all of them go on with, so only a difference that no order
of summing explains has to end the run.
"""


def in_turn(items: Iterable[T]) -> Iterator[T]:
    """The items that are this process's: one for each process in turn. All are taken from `items`, the same each time.

    They come as they are asked for, so data need not fit into memory.
    """
    own, size = rank(), world_size()
    return (item for number, item in enumerate(items) if number % size == own)


def each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`[function(item) for item in items]`, where every process computes some, and all get all.

    Args:
        function: Shares nothing itself; what it returns can be pickled and depends on the item alone.
        items: The same in every process.

    Raises:
        Exception: What it raised for the first item for which it raises; in all processes.
    """
    if not together():
        return [function(item) for item in items]
    own: list[R] = []
    error: Exception | None = None
    mine = list(in_turn(items))
    with alone():
        for item in mine:
            try:
                own.append(function(item))
            except Exception as raised:
                error = _portable(raised)
                break
    parts = gathered((own, error))
    results: list[R] = []
    for number in range(len(items)):
        done, failed = parts[number % len(parts)]
        place = number // len(parts)
        if place == len(done) and failed is not None:
            raise failed
        results.append(done[place])
    return results


def first_decides(function: Callable[[], T]) -> T:
    """What the first process computes while all others wait: measured times, and what has to be done only once.

    Args:
        function: Shares nothing itself; what it returns can be pickled.

    Raises:
        Exception: What it raised there; in all processes.
    """
    if not together():
        return function()
    found: tuple[T | None, Exception | None] = None, None
    if rank() == 0:
        with alone():
            try:
                found = function(), None
            except Exception as raised:
                found = None, _portable(raised)
    value, error = from_first(found)
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def agreed(what: str, values: Mapping[str, T]) -> dict[str, T]:
    """What the first process has, from which the others may differ by no more than rounding.

    Args:
        what: What it is, in the plural, for the message, such as "the scores".
        values: Texts, numbers or tensors by name of a layer.

    Raises:
        RanksDiffer: They differ by more; all processes raise it.
    """
    if not together():
        return dict(values)
    own = {name: digest(_content(value)) for name, value in values.items()}
    first = from_first(own)
    unequal = {name for name in {**first, **own} if first.get(name) != own.get(name)}
    unequal = set().union(*gathered(unequal))
    if not unequal:
        return dict(values)
    names = sorted(unequal, key=[*first, *sorted(unequal - set(first))].index)
    theirs = from_first({name: values[name] for name in names if name in values})
    found = gathered(next((name for name in names if not _alike(values.get(name), theirs.get(name))), None))
    other = next((number for number, name in enumerate(found) if name is not None), None)
    if other is not None:
        raise RanksDiffer(
            f"{what} of {found[other]} differ between rank 0 and rank {other}; nothing was written. All processes have "
            "to come to the same: a method must not depend on the rank, on time or on random numbers of its own"
        )
    return {name: theirs[name] if name in theirs else values[name] for name in first}


def require_agreed_weights(network: nn.Module) -> None:
    """Gives all processes the parameters and buffers of the first, from which theirs may differ by rounding alone.

    Raises:
        RanksDiffer: They differ by more; all processes raise it.
    """
    if not together():
        return
    tensors = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if torch.is_tensor(tensor)}
    own = {name: tensor.detach() for name, tensor in tensors.items()}
    with torch.no_grad():
        for name, tensor in agreed("the weights", own).items():
            if tensor is not own[name]:
                own[name].copy_(tensor)


def _content(value: object) -> str | dict[str, Tensor]:
    return {"": value} if isinstance(value, Tensor) else repr(value)


def _alike(own: object, other: object) -> bool:
    if isinstance(own, float) and isinstance(other, float):
        own, other = torch.tensor(own, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    if not isinstance(own, Tensor) or not isinstance(other, Tensor):
        return type(own) is type(other) and own == other
    if own.shape != other.shape or own.dtype != other.dtype:
        return False
    if not (own.is_floating_point() or own.is_complex()):
        return torch.equal(own.cpu(), other.cpu())
    mine, theirs = own.detach().cpu(), other.detach().cpu()
    if not bool(mine.isfinite().all() & theirs.isfinite().all()):
        return torch.equal(mine, theirs)
    wide = torch.complex128 if own.is_complex() else torch.float64
    scale = theirs.abs().max() if theirs.numel() else 0.0
    return bool(((mine.to(wide) - theirs.to(wide)).abs() <= ROUNDING * scale).all())


def _portable(error: Exception) -> Exception:
    """The error, if other processes can be told of it.

    Raises:
        Exception: It itself, if not.
    """
    if isinstance(error, Interrupted):
        raise error
    try:
        pickle.dumps(error)
        copy.copy(error)  # made again from its arguments, as where it arrives
    except Exception:
        raise error from None
    return error
