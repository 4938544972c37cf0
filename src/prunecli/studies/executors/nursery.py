"""The process that starts jobs on this machine: forked once, before its parent has threads, it forks for every job."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
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
_IMPORTED_AHEAD = frozenset(
    (
        *("PIL", "matplotlib", "numpy", "open_clip", "pandas", "prunecli", "pyarrow", "scipy", "sklearn"),
        *("spikingjelly", "timm", "torch", "torchvision", "transformers"),
    )
)
"""Packages that are imported before a fork once a job has imported them, so that the next ones need not. None of them
starts threads or an accelerator by being imported."""
_FEW = 1000
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
    running: dict[str, _Child] = {}
    gently = False
    try:
        while True:
            ready = wait([requests, *(child.process.sentinel for child in running.values())])
            if requests in ready:
                message = requests.recv()
                if isinstance(message, bool):
                    gently = message
                    break
                running[message.job.name] = _start(message, requests)
            for name in [name for name, child in running.items() if child.process.sentinel in ready]:
                child = running.pop(name)
                child.process.join()
                requests.send(Ended(name, _cause(child.process.exitcode)))
                _import_ahead(child.imports)
    except (EOFError, OSError):  # the other side has died
        pass
    _end([child.process for child in running.values()], gently)


@dataclass(frozen=True)
class _Child:
    """A job's process, and where it says which modules it has imported."""

    process: BaseProcess
    imports: Connection


def _start(started: Started, requests: Connection) -> _Child:
    context: Any = get_context(START_METHOD)
    imports, inner = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(started, requests, inner))
    process.start()
    inner.close()
    return _Child(process, imports)


def _import_ahead(imports: Connection) -> None:
    """Imports what a job has, where that is harmless and a fork passes it on."""
    with imports, contextlib.suppress(EOFError, OSError), open(os.devnull, "w", encoding="utf-8") as nowhere:
        names: list[str] = imports.recv() if imports.poll() else []
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in names if START_METHOD == "fork" else ():
                if name not in sys.modules:
                    with contextlib.suppress(Exception):  # whatever it is, the next job meets it by itself
                        import_module(name)


def _run(started: Started, requests: Connection, imports: Connection) -> None:
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
    known = set(sys.modules)
    call(job)
    new = [name for name in sys.modules if name not in known and name.partition(".")[0] in _IMPORTED_AHEAD]
    imports.send(new[:_FEW])  # nobody reads it before this process has ended, so it has to fit into the pipe


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


def _end(running: Sequence[BaseProcess], gently: bool) -> None:
    deadline = time.monotonic() + (_PATIENCE if gently else 0)
    for process in running:
        process.terminate()
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it dies, whatever that dies of; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
