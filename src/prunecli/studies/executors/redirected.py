"""A job in a process that belongs to somebody else: it prints into its log, and everything is put back afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunecli.registry import imported
from prunecli.studies.executors.base import Job


def call_redirected(job: Job, threads: int, workspace: str) -> None:
    """Makes the call that a job stands for, in its folder, with what it prints in its log.

    Args:
        job: The job.
        threads: Threads to compute with.
        workspace: A folder that has to be there: the one that whoever started the job reads results from.

    Raises:
        FileNotFoundError: It is not.
    """
    import platform

    import torch

    if not Path(workspace).is_dir():
        raise FileNotFoundError(
            f"{workspace} is not there on {platform.node()}: all nodes have to see the folder of the sweep"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _printing_to(Path(job.log)), _inside(job.folder):
            imported(job.function)(**job.arguments)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(here)


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8", buffering=1) as file:
        streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
