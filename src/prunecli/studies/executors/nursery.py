"""The process that starts jobs on this machine: forked once, before its parent has threads, it forks for every job."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from prunecli.errors import Stopped
from prunecli.registry import imported
from prunecli.studies.executors.base import Ended, Job

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Elsewhere libraries do not survive a fork, so a job starts with its imports."""
_PATIENCE = 20.0
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True)
class Place:
    """What a job may use: threads, and a GPU as CUDA_VISIBLE_DEVICES names it."""

    threads: int
    gpu: str | None = None


@dataclass(frozen=True)
class Started:
    """A job that is to be started, and where."""

    job: Job
    place: Place


def tend(requests: Connection, other_end: Connection) -> None:
    """Starts jobs and says when they have ended, until it is told to stop or whoever started it is no longer there.

    Args:
        requests: Receives `Started`, and at the end whether to end gently; gets an `Ended` for each job.
        other_end: What a fork has inherited of the other end; while it is open, nobody's death would be noticed.
    """
    if START_METHOD == "fork":
        other_end.close()
    _die_with_parent()
    os.setsid()  # Ctrl-C goes to whoever started it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    running: dict[str, BaseProcess] = {}
    gently = False
    try:
        while True:
            ready = wait([requests, *(process.sentinel for process in running.values())])
            if requests in ready:
                message = requests.recv()
                if isinstance(message, bool):
                    gently = message
                    break
                running[message.job.name] = _start(message, requests)
            for name in [name for name, process in running.items() if process.sentinel in ready]:
                process = running.pop(name)
                process.join()
                requests.send(Ended(name, _cause(process.exitcode)))
    except (EOFError, OSError):  # the other side has died
        pass
    _end(running, gently)


def _start(started: Started, requests: Connection) -> BaseProcess:
    process = get_context(START_METHOD).Process(target=_run, args=(started, requests))
    process.start()
    return process


def _run(started: Started, requests: Connection) -> None:
    """The body of a job's process."""
    requests.close()
    _die_with_parent()
    os.setsid()
    signal.signal(signal.SIGTERM, _stop)
    place, job = started.place, started.job
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    os.environ["OMP_NUM_THREADS"] = str(place.threads)
    os.chdir(job.folder)
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    import torch

    torch.set_num_threads(place.threads)
    call(job)


def call(job: Job) -> Any:
    """Makes the call that a job stands for."""
    return imported(job.function)(**job.arguments)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _cause(code: int | None) -> str | None:
    if not code:
        return None
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with exit code {code}"


def _end(running: dict[str, BaseProcess], gently: bool) -> None:
    deadline = time.monotonic() + (_PATIENCE if gently else 0)
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it dies, whatever that dies of; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
