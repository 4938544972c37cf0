"""Jobs in the queue of a SLURM cluster; submitit writes the batch scripts, and does nothing else here."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any

from prunecli.errors import RecipeError, ResourceError, first_line
from prunecli.studies.executors.base import Ended, Job, Resources
from prunecli.studies.executors.redirected import call_redirected

_QUEUED = 100
"""Jobs in the queue at once, unless --jobs says otherwise."""
_POLL = 0.2
_WHOLE = ("timeout_min", "mem_gb", "nodes")
_CLUSTERS = ("slurm", "local", "debug")
_OWN = ("cluster", *_WHOLE)
_KNOWN = ("partition", "account", "qos", "constraint", "time", "exclude", "reservation", "comment", "mem", "nice")


class SlurmExecutor:
    """One batch job for each job.

    A job that SLURM stops, because others go first or its time is over, is queued again and continues from its files.
    Jobs of a driver that was killed stay in the queue: whoever runs the same cell meanwhile waits for them.

    Args:
        resources: Cores and GPUs of each job, and options: timeout_min, mem_gb, and those of sbatch such as partition.
            `cluster=local` runs them as processes here, to try it.

    Raises:
        RecipeError: submitit is not installed, there is no SLURM here, or an option is unknown.
    """

    def __init__(self, resources: Resources) -> None:
        if resources.address is not None:
            raise RecipeError("--address is for Ray; SLURM is where sbatch is")
        try:
            import submitit
        except ImportError as error:
            raise RecipeError("--executor slurm needs submitit: pip install 'prunecli[slurm]'") from error
        # Without an accounting database it would say with every look at the queue that it goes by the files of jobs.
        logging.getLogger("submitit").setLevel(logging.ERROR)
        options = dict(resources.options)
        cluster = options.pop("cluster", "slurm")
        if cluster not in _CLUSTERS:
            raise RecipeError(f"--executor-option cluster={cluster}: has to be one of {', '.join(_CLUSTERS)}")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise RecipeError("--executor slurm: there is no sbatch here; start it on a login node of the cluster")
        if resources.gpus is not None and resources.gpus != int(resources.gpus):
            raise RecipeError(f"--gpus {resources.gpus:g}: SLURM gives whole GPUs; --executor ray shares them")
        self.slots = resources.jobs or _QUEUED
        self._cpus, self._workspace, self._cluster = resources.cpus or 1, resources.workspace, cluster
        self._executor: Any = submitit.AutoExecutor(folder=f"{resources.workspace}/slurm/%j", cluster=cluster)
        gpus = {"gpus_per_node": int(resources.gpus)} if resources.gpus else {}
        self._executor.update_parameters(
            name="prune", cpus_per_task=self._cpus, tasks_per_node=1, **gpus, **_parameters(options)
        )
        self._running: dict[str, Any] = {}

    @property
    def described(self) -> str:
        """How many, and where."""
        return f"at most {self.slots} jobs in the queue of {self._cluster}, {self._cpus} cores each"

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            ResourceError: SLURM does not take it.
        """
        from submitit.core.utils import FailedJobError

        try:
            self._running[job.name] = self._executor.submit(Call(job, self._cpus, self._workspace))
        except FailedJobError as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise ResourceError(f"sbatch does not take the job: {said[-1] if said else error}") from error

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that have ended since the last call; waits for one, at most so long."""
        deadline = time.monotonic() + seconds
        while True:
            done = [name for name, job in self._running.items() if job.done()]
            if done or time.monotonic() > deadline:
                return [Ended(name, _cause(self._running.pop(name))) for name in done]
            time.sleep(_POLL)

    def close(self, *, gently: bool) -> None:
        """Cancels everything that still runs or waits."""
        for job in self._running.values():
            job.cancel(check=False)


class Call:
    """The call of a job, as submitit pickles it: queued again as it is, since its files say how far it is."""

    def __init__(self, job: Job, cpus: int, workspace: str) -> None:
        self._job, self._cpus, self._workspace = job, cpus, workspace

    def __call__(self) -> None:
        """Makes it."""
        call_redirected(self._job, self._cpus, self._workspace)

    def checkpoint(self) -> Any:
        """What to queue when SLURM stops it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """Options as submitit takes them.

    Raises:
        RecipeError: One is unknown, or no number.
    """
    parameters: dict[str, Any] = {}
    for name, value in options.items():
        if name in _WHOLE:
            if not value.isdigit():
                raise RecipeError(f"--executor-option {name}={value}: has to be a whole number")
            parameters[name] = int(value)
        elif name in _KNOWN:
            parameters[f"slurm_{name}"] = value
        else:
            known = ", ".join((*_OWN, *_KNOWN))
            raise RecipeError(f"--executor-option {name}={value}: unknown; known are {known}")
    return parameters


def _cause(job: Any) -> str | None:
    try:
        job.result()
    except Exception as error:  # submitit raises what the job has raised, or one of its own
        return f"ended with {type(error).__name__}: {first_line(error)}"
    return None
