"""Processes that work together over gloo, started once and given many functions to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import multiprocessing

_PATIENCE = 60.0
"""Seconds after which a function counts as stuck."""


class Failed(Exception):
    """A function raised in some process.

    Attributes:
        by_rank: The exception of each process, or None.
    """

    def __init__(self, by_rank: list[Exception | None]) -> None:
        super().__init__(by_rank)
        self.by_rank = by_rank


class Ranks:
    """Some processes with ranks from 0.

    Args:
        size: How many.
        folder: Where they meet.
    """

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "tests.ranks.cases"])
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run, args=(theirs, rank, size, str(folder / "store")), daemon=True)
            process.start()
            self._ends.append(ours)
            self._processes.append(process)

    def __call__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
        """What a function, which has to be one of a module, returns in each process.

        Raises:
            Failed: It raised.
            TimeoutError: A process is stuck; all of them are ended.
        """
        for end in self._ends:
            end.send((function, arguments, named))
        answers = []
        for end in self._ends:
            if not end.poll(_PATIENCE):
                self.close()
                raise TimeoutError(f"{function.__name__}{arguments}: a process is stuck")
            answers.append(end.recv())
        if any(error is not None for _, error in answers):
            raise Failed([error for _, error in answers])
        return [value for value, _ in answers]

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
            process.join()


def _run(end: Connection, rank: int, size: int, store: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while True:
        try:
            function, arguments, named = end.recv()
        except EOFError:
            return
        try:
            end.send((function(*arguments, **named), None))
        except Exception as error:
            end.send((None, error))
