"""The processes that work on one run together (torch.distributed); without a launcher, this one alone.

Every process runs the whole program on the same network and settings. What is split between them are samples, and what
is added up over samples is added up over processes. So every function here has to be called by all of them, in the
same order; alone, each of them does nothing and costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prunecli.errors import FailedElsewhere, PruneError, RankLost, RanksDiffer, first_line

T = TypeVar("T")
_ALONE = ContextVar("_ALONE", default=False)
_AT_ONCE = 1 << 22
"""Numbers that are added up together, at most, unless a single tensor has more."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if together() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


def together() -> bool:
    """Whether there is more than one process, and this is not done by one `alone`."""
    return _started() and not _ALONE.get() and dist.get_world_size() > 1


def writes() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return not _started() or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """What runs in this block shares nothing, so that not every process has to run it: there is one rank, 0."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def own_share(items: Sequence[T]) -> list[T]:
    """The items that are this process's: every `world_size()`-th one, starting with its rank."""
    return list(items[rank() :: world_size()])


def wait_for_all() -> None:
    """Returns once every process has come here."""
    if together():
        with _contact():
            dist.barrier()


def summed(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The sums over all processes, in float64 on the CPU, equal bit by bit on each of them.

    Args:
        tensors: Of the same number and shapes in every process.
    """
    doubles = [tensor.detach().cpu().double() for tensor in tensors]
    if not together() or not doubles:
        return doubles
    sums: list[Tensor] = []
    while len(sums) < len(doubles):
        some = _first_few(doubles[len(sums) :])
        joined = torch.cat([tensor.reshape(-1) for tensor in some])
        _reduce(joined, dist.ReduceOp.SUM)
        parts: Iterable[Tensor] = torch.split(joined, [tensor.numel() for tensor in some])
        sums += [part.reshape(tensor.shape) for part, tensor in zip(parts, some, strict=True)]
    return sums


def _first_few(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The first of some tensors, as many as are added up at once."""
    numbers = 0
    for count, tensor in enumerate(tensors):
        numbers += tensor.numel()
        if count and numbers > _AT_ONCE:
            return tensors[:count]
    return tensors


def summed_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by name; a name that a process lacks counts as zero there, as where it had no sample of a kind."""
    if not together():
        return dict(zip(tensors, summed(tensors.values()), strict=True))
    shapes: dict[str, tuple[int, ...]] = {}
    for known in gathered({name: tuple(tensor.shape) for name, tensor in tensors.items()}):
        shapes |= known
    names = sorted(shapes)
    zeros = (torch.zeros(shapes[name], dtype=torch.float64) for name in names)
    own = [tensors.get(name, zero) for name, zero in zip(names, zeros, strict=True)]
    return dict(zip(names, summed(own), strict=True))


def from_first(value: T) -> T:
    """What rank 0 has, for every process; anything that can be pickled."""
    if not together():
        return value
    return _from(0, value)


def from_rank(number: int, value: T) -> T:
    """What another rank has, for every process."""
    return _from(number, value) if together() else value


def by_first(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, which alone does it, for every process: how files are written.

    Args:
        action: Must not need the other processes, which wait. What it returns can be pickled.

    Raises:
        FailedElsewhere: On all other ranks, if it fails on rank 0.
    """
    if not together():
        return action()
    error: BaseException | None = None
    outcome: tuple[Any, str | None, int] = (None, None, 0)
    if writes():
        try:
            with alone():
                outcome = (action(), None, 0)
        except BaseException as raised:  # an interrupt too: nobody may wait for it in vain
            error = raised
            outcome = (None, str(raised), getattr(raised, "exit_code", 1 if isinstance(raised, Exception) else 130))
    value, message, code = _from(0, outcome)
    if error is not None:
        raise error
    if message is not None:
        raise FailedElsewhere(f"rank 0: {message}", code)
    result: T = value
    return result


def gathered(value: T) -> list[T]:
    """What every process has, by rank; anything that can be pickled."""
    if not together():
        return [value]
    values: list[T] = [value] * world_size()
    with _contact():
        dist.all_gather_object(values, value)
    return values


def averaged(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The means over all processes, in float64 on the CPU; see `summed`."""
    return [total / world_size() for total in summed(tensors)]


class Running:
    """A sum over all processes that runs while this one goes on.

    Args:
        tensor: Changed in place; where the backend takes tensors from.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._work: Any = None
        if together():
            with _contact():
                self._work = dist.all_reduce(tensor, async_op=True)

    def wait(self) -> None:
        """Returns once the tensor holds the sum."""
        if self._work is not None:
            with _contact():
                self._work.wait()


def require_equal(facts: Mapping[str, Any]) -> None:
    """Checks that every process has the same of each of several facts.

    Args:
        facts: Such as versions, by what they are called.

    Raises:
        RanksDiffer: Two processes differ; the message names both values. All of them raise it.
    """
    everywhere = gathered(dict(facts))
    first = everywhere[0]
    for number, facts in enumerate(everywhere):
        for name in sorted(first.keys() | facts.keys()):
            here, there = first.get(name), facts.get(name)
            if here != there:
                raise RanksDiffer(
                    f"{name} is {_short(here)} on rank 0 and {_short(there)} on rank {number}; every process needs the "
                    "same"
                )


def require_same(what: str, value: str | Mapping[str, Tensor]) -> None:
    """Checks that every process has the same.

    Args:
        what: What it is, for the message, such as "the plan".
        value: A text, or tensors by name.

    Raises:
        RanksDiffer: Two processes differ; all of them raise it.
    """
    if not together():
        return
    digests = gathered(digest(value))
    other = next((number for number, one in enumerate(digests) if one != digests[0]), None)
    if other is not None:
        raise RanksDiffer(
            f"{what} differs between rank 0 ({digests[0][:12]}) and rank {other} ({digests[other][:12]}); nothing was "
            "written: report this with the command"
        )


def digest(value: str | Mapping[str, Tensor]) -> str:
    """SHA-256 of a text, or of tensors and their names, types and shapes."""
    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()
    total = hashlib.sha256()
    for name in sorted(value):
        tensor = value[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduces a CPU tensor in place, by way of the accelerator where only that has a backend."""
    where = _where()
    there = tensor.to(where)
    with _contact():
        dist.all_reduce(there, op=operation)
    if there is not tensor:
        tensor.copy_(there)


def _from(number: int, value: T) -> T:
    boxed = [value]
    with _contact():
        dist.broadcast_object_list(boxed, src=number, device=_where())
    return boxed[0]


@contextmanager
def _contact() -> Iterator[None]:
    """Says what it means when a collective fails: another process is gone.

    Raises:
        RankLost: It is.
    """
    try:
        yield
    except PruneError:
        raise
    except RuntimeError as error:
        raise RankLost(f"lost contact with another process ({first_line(error)})") from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _where() -> torch.device:
    """Where tensors of collectives have to be."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
