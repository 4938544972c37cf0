"""How many processes load samples where nobody says it."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from pathlib import Path

from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import Split
from prunecli.measure.cores import usable_cores
from prunecli.ranks import world_size

_MOST = 4
_WORTHWHILE = 128
"""Samples that take longer to read than processes to start."""
_HELD = 3
"""Batches of a process that are in shared memory at once: two that wait, and one that is used."""
_SHARED = Path("/dev/shm")


def workers_for(split: Split, preprocessing: Preprocessing, batch_size: int, asked: int | None) -> int:
    """As many processes as were asked for, else one for each core that computing leaves, at most 4.

    There are none for samples in memory, which are had faster than they are passed on, for few samples, where starting
    a process means importing everything again (on other systems than Linux), or where a container's shared memory
    would not hold their batches. What is computed does not depend on their number.

    Args:
        split: The samples.
        preprocessing: The size of their inputs.
        batch_size: Samples in a batch.
        asked: What the user says.
    """
    if asked is not None:
        return asked
    frames = preprocessing.frames.frames if preprocessing.frames is not None else 1
    batch_bytes = 4 * math.prod(preprocessing.size) * frames * batch_size
    return spare_workers(len(split.labels), batch_bytes) if getattr(split, "reads_files", False) else 0


def spare_workers(files: int, batch_bytes: int) -> int:
    """The same where it is known that samples are in files, and how large a batch is."""
    if files < _WORTHWHILE or not _starts_quickly():
        return 0
    return max(0, min(usable_cores() // world_size() - 1, _MOST, _shared_bytes() // (2 * _HELD * batch_bytes)))


def _starts_quickly() -> bool:
    """Whether a process begins as a copy of this one, and this one may have some."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    forks = sys.platform == "linux" and method == "fork"
    return forks and not multiprocessing.current_process().daemon


def _shared_bytes() -> int:
    """Free shared memory, in which processes hand batches over."""
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
