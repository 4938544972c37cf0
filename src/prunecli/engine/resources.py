"""Out-of-memory errors and dead loader processes as one-line errors."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunecli.errors import PruneError, ResourceError

_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|DefaultCPUAllocator|out of memory|std::bad_alloc|ALLOC_FAILED|Cannot allocate memory"
)
_SIZE = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed|exited)")
_SHARED_MEMORY = re.compile(r"unable to (?:write to|open|allocate|mmap|resize).*(?:shm|torch_)", re.DOTALL)


@contextmanager
def resource_errors(batch_size: int | None = None) -> Iterator[None]:
    """Turns out-of-memory errors and dead loader processes into errors that say what helps.

    Args:
        batch_size: Images per batch, for the message.

    Raises:
        ResourceError: One of these has happened.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        scarce = as_resource_error(error, batch_size)
        if scarce is None:
            raise
        raise scarce from error


def as_resource_error(error: BaseException, batch_size: int | None = None) -> ResourceError | None:
    """A one-line error if `error` is about memory or a loader process, else None."""
    if isinstance(error, PruneError):
        return None
    text = str(error)
    worker = _WORKER.search(text)
    if worker is not None:
        return _dead_worker(f" (pid {worker[1].strip()})")
    if _SHARED_MEMORY.search(text):
        return ResourceError(
            "no shared memory (/dev/shm) is left for the processes that load images; "
            "use --workers 0 or smaller batches (--batch-size), or give it more"
        )
    if (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or _OUT_OF_MEMORY.search(text)
    ):
        size = _SIZE.search(text)
        doing = f" at batches of {batch_size} images" if batch_size is not None else ""
        return ResourceError(
            f"out of memory{doing}{f' ({size[1]} more were needed)' if size else ''}; "
            "use smaller batches (--batch-size) or images (--image-size)"
        )
    return None


def as_loader_error(error: BaseException, batch_size: int) -> ResourceError | None:
    """Likewise for an error raised while waiting for a batch, where a lost connection also means a dead process."""
    lost = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) or "items of ancdata" in str(error)
    if lost and not str(error).startswith("Caught "):  # that is how torch passes on what was raised over there
        return _dead_worker("")
    return as_resource_error(error, batch_size)


def _dead_worker(which: str) -> ResourceError:
    return ResourceError(
        f"a process that loads images has died{which}, most likely for want of memory or shared memory; "
        "use fewer --workers (0 loads without them) or give it more"
    )
