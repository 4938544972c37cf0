"""Jobs as processes of this machine, each with its share of cores and a GPU."""

from __future__ import annotations

import os
from multiprocessing import get_context
from typing import Any

from prunecli.errors import RecipeError, ResourceError
from prunecli.report.numbers import number_of
from prunecli.studies.executors.base import Ended, Job, Resources
from prunecli.studies.executors.nursery import START_METHOD, Place, Started, tend

_PATIENCE = 30.0
"""Seconds that processes get to save their state and end."""


class LocalExecutor:
    """One process for each job, at most `jobs` at once.

    A process with nothing but imports behind it forks one for each job, so that a job starts in a fraction of the time
    that an interpreter takes, and knows nothing of those before it.

    Args:
        resources: How many jobs and how many cores each. Without a number of jobs there is one for each GPU, else one.

    Raises:
        RecipeError: There are fewer cores or GPUs than that takes.
    """

    def __init__(self, resources: Resources) -> None:
        cores, gpus = usable_cores(), visible_gpus()
        if resources.address is not None or resources.options:
            raise RecipeError("--address and --executor-option are for clusters; add --executor ray or slurm")
        jobs = resources.jobs or max(1, min(len(gpus), cores))
        self._check(jobs, cores, gpus, resources)
        self._cpus = resources.cpus or max(1, cores // jobs)
        self._gpus = [] if resources.gpus == 0 else gpus
        self.slots = jobs
        self._free = list(range(jobs))
        self._running: dict[str, int] = {}
        context: Any = get_context(START_METHOD)
        self._connection, inner = context.Pipe()
        self._process = context.Process(target=tend, args=(inner, self._connection))
        self._process.start()
        inner.close()

    @staticmethod
    def _check(jobs: int, cores: int, gpus: list[str], resources: Resources) -> None:
        cpus = resources.cpus or 1
        if jobs * cpus > cores:
            each = f" with --cpus {cpus} each" if resources.cpus else ""
            asked = f"--jobs {jobs}{each}" if resources.jobs or not resources.cpus else f"--cpus {cpus}"
            fewer = f"--jobs {cores // cpus}" if cores >= cpus else f"--cpus {cores}"
            raise RecipeError(
                f"{asked}: {number_of(jobs * cpus, 'core')} asked for, and this machine has "
                f"{number_of(cores, 'core')} that it may use; give {fewer} or fewer"
            )
        if resources.gpus and resources.gpus * jobs > len(gpus):
            raise RecipeError(
                f"--gpus {resources.gpus:g} for each of {jobs} jobs: {len(gpus)} are visible (CUDA_VISIBLE_DEVICES)"
            )

    @property
    def described(self) -> str:
        """How many processes, and what each has."""
        gpus = f", {number_of(len(self._gpus), 'GPU')}" if self._gpus else ""
        processes = number_of(self.slots, "process", "processes")
        return f"{processes} here, {number_of(self._cpus, 'core')} each{gpus}"

    def submit(self, job: Job) -> None:
        """Starts a job."""
        slot = self._free.pop(0)
        self._running[job.name] = slot
        gpu = self._gpus[slot % len(self._gpus)] if self._gpus else None
        self._send(Started(job, Place(self._cpus, gpu)))

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that have ended since the last call; waits for one, at most so long."""
        ended: list[Ended] = []
        try:
            while self._connection.poll(0 if ended else seconds):
                done: Ended = self._connection.recv()
                self._free.append(self._running.pop(done.name))
                ended.append(done)
        except (EOFError, OSError) as error:
            raise ResourceError("the process that starts jobs has died; run the command again to continue") from error
        return ended

    def close(self, *, gently: bool) -> None:
        """Ends everything that still runs."""
        try:
            self._send(gently)
            self._process.join(_PATIENCE if gently else _PATIENCE / 3)
        except ResourceError:  # it has died
            pass
        finally:
            self._connection.close()
            if self._process.is_alive():
                self._process.kill()
            self._process.join()

    def _send(self, message: Started | bool) -> None:
        try:
            self._connection.send(message)
        except (BrokenPipeError, OSError) as error:
            raise ResourceError("the process that starts jobs has died; run the command again to continue") from error


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA is not started for it."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
