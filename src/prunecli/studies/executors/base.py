"""What runs jobs: the protocol that every executor follows, and what a job is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Job:
    """A call that can be made in another process or on another machine: plain data, so that it survives the way there.

    Attributes:
        name: Unlike that of every other job.
        function: What is called, as "module:function".
        arguments: Its keyword arguments: text, numbers, and lists and mappings of them.
        folder: Where it runs: module paths and relative paths in plans are read from there.
        log: The file that receives what it prints.
    """

    name: str
    function: str
    arguments: Mapping[str, Any]
    folder: str
    log: str


@dataclass(frozen=True)
class Ended:
    """A job that is no longer running.

    Attributes:
        name: The job's.
        died: Why its process ended without finishing the call; None: the call came back.
    """

    name: str
    died: str | None = None


@dataclass(frozen=True)
class Resources:
    """What an executor may use.

    Attributes:
        jobs: How many at once; None: what suits the executor.
        cpus: Cores of each job; None: what suits the executor.
        gpus: GPUs of each job, a fraction where the executor can share one; None: what suits the executor.
        address: Of a cluster.
        options: More of the executor's own, by name.
        workspace: A folder that the executor may write to.
    """

    jobs: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    address: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    workspace: str = ""


class Executor(Protocol):
    """Runs jobs. Whether one has done its work is for its own files to say: an executor only knows about processes."""

    @property
    def slots(self) -> int:
        """How many jobs may be submitted and not ended at the same time."""
        ...

    @property
    def described(self) -> str:
        """Where jobs run, in words."""
        ...

    def submit(self, job: Job) -> None:
        """Starts a job, or queues it."""
        ...

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that have ended since the last call; waits for one, at most so long."""
        ...

    def close(self, *, gently: bool) -> None:
        """Ends everything that still runs; `gently`: after a moment in which jobs may save their state."""
        ...


ExecutorName = Literal["local", "ray", "slurm"]
