"""Memory that runs out and loader processes that die, as one line each."""

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
    """Turns running out of memory and the death of a loader process into an error that says what helps.

    Args:
        batch_size: Images in a batch, to be named.

    Raises:
        ResourceError: One of these has happened.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        found = as_resource_error(error, batch_size)
        if found is None:
            raise
        raise found from error


def as_resource_error(error: BaseException, batch_size: int | None = None) -> ResourceError | None:
    """The error in one line if it is about memory or a loader process, else None."""
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
    """The same for an error met while waiting for a batch, where a lost connection means a dead process, too."""
    lost = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) or "items of ancdata" in str(error)
    if lost and not str(error).startswith("Caught "):  # that is how torch passes on what was raised over there
        return _dead_worker("")
    return as_resource_error(error, batch_size)


def _dead_worker(which: str) -> ResourceError:
    return ResourceError(
        f"a process that loads images has died{which}, most likely for want of memory or shared memory; "
        "use fewer --workers (0 loads without them) or give it more"
    )
