"""The processes that work on one run together (torch.distributed); without a launcher, this one alone.

Every process runs the whole program on the same network and settings. What is split between them are samples, and what
is added up over samples is added up over processes. So every function here has to be called by all of them, in the
same order; alone, each of them does nothing and costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prunecli.errors import RanksDiffer

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if together() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


def together() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def writes() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


def own_share(items: Sequence[T]) -> list[T]:
    """The items that are this process's: every `world_size()`-th one, starting with its rank."""
    return list(items[rank() :: world_size()])


def wait_for_all() -> None:
    """Returns once every process has come here."""
    if together():
        dist.barrier()


def summed(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The sums over all processes, in float64 on the CPU, equal bit by bit on each of them.

    Args:
        tensors: Of the same number and shapes in every process.
    """
    doubles = [tensor.detach().cpu().double() for tensor in tensors]
    if not together() or not doubles:
        return doubles
    joined = torch.cat([tensor.reshape(-1) for tensor in doubles])
    _reduce(joined, dist.ReduceOp.SUM)
    parts = joined.split([tensor.numel() for tensor in doubles])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, doubles, strict=True)]


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
    boxed = [value]
    dist.broadcast_object_list(boxed, src=0, device=_where())
    return boxed[0]


def gathered(value: T) -> list[T]:
    """What every process has, by rank; anything that can be pickled."""
    if not together():
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


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
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
    """Reduces a CPU tensor in place, by way of the accelerator where only that has a backend."""
    where = _where()
    there = tensor.to(where)
    dist.all_reduce(there, op=operation)
    if there is not tensor:
        tensor.copy_(there)


def _where() -> torch.device:
    """Where tensors of collectives have to be."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
