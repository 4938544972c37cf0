"""Jobs as tasks of a Ray cluster, which places them on its nodes."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from prunecli.errors import RecipeError, ResourceError, first_line
from prunecli.report.numbers import number_of
from prunecli.studies.executors.base import Ended, Job, Resources
from prunecli.studies.executors.local import usable_cores
from prunecli.studies.executors.redirected import call_redirected

_REACHED = 5.0
"""Seconds in which a connection has to be there."""
_ANSWERED = 40.0
"""Seconds in which a Ray cluster has to say that it is one."""
_PATIENCE = 20.0
_ROUNDING = 1e-9
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayExecutor:
    """One task for each job.

    A task whose worker or node dies is started again by who watches over the jobs, so Ray itself does not.

    Args:
        resources: Cores and GPUs of each job, GPUs also as a fraction; the address of a cluster, "auto" for one that
            runs here already, or nothing, for one that is started here and ends with this process.

    Raises:
        RecipeError: Ray is not installed, nothing answers at the address, or the cluster is too small.
    """

    def __init__(self, resources: Resources) -> None:
        if resources.options:
            raise RecipeError("--executor-option is for SLURM; Ray has --address, --cpus and --gpus")
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise RecipeError("--executor ray needs Ray: pip install 'prunecli[ray]'") from error
        self._ray: Any = ray
        self._cpus, self._gpus = resources.cpus or 1, resources.gpus or 0
        self._workspace = resources.workspace
        self._own = resources.address is None
        self._connect(resources)
        self._running: dict[Any, str] = {}
        try:
            self.slots = self._counted(resources)
        except RecipeError:
            ray.shutdown()
            raise
        self._task: Any = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(call_redirected)

    def _connect(self, resources: Resources) -> None:
        ray, address = self._ray, resources.address
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is None:
            quiet |= {"num_cpus": usable_cores(), "include_dashboard": False}
        else:
            _check_reachable(address)
        try:
            ray.init(address=address or "local", **quiet)
        except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"--address {address}: no Ray cluster answers there" if address else "Ray did not start here"
            raise RecipeError(f"{where} ({first_line(error)})") from error

    def _counted(self, resources: Resources) -> int:
        """How many jobs fit at once.

        Raises:
            RecipeError: None does, or fewer than were asked for.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores, gpus = (sum(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU"))
        fit = sum(self._fit_on(node) for node in nodes)  # a job has to find all it takes on one node
        if fit < max(1, resources.jobs or 1):
            each = f"{self._cpus} cores" + (f" and {self._gpus:g} GPUs" if self._gpus else "")
            raise RecipeError(
                f"--jobs {resources.jobs or 1}: the Ray cluster has {cores:g} cores and {gpus:g} GPUs on "
                f"{number_of(len(nodes), 'node')}, and each job takes {each} of one; {fit} fit"
            )
        return resources.jobs or fit

    def _fit_on(self, node: Mapping[str, float]) -> int:
        """How many jobs fit on a node at once."""
        fit = int(node.get("CPU", 0)) // self._cpus
        return min(fit, int(node.get("GPU", 0) / self._gpus + _ROUNDING)) if self._gpus else fit

    @property
    def described(self) -> str:
        """How many tasks, on how many nodes."""
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        gpus = f" and {self._gpus:g} GPUs" if self._gpus else ""
        return f"{self.slots} Ray tasks on {nodes} node{'s' if nodes > 1 else ''}, {self._cpus} cores{gpus} each"

    def submit(self, job: Job) -> None:
        """Hands a job to Ray."""
        self._running[self._task.remote(job, self._cpus, self._workspace)] = job.name

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that have ended since the last call; waits for one, at most so long."""
        try:
            done, _ = self._ray.wait([*self._running], num_returns=1, timeout=seconds)
        except Exception as error:  # of many kinds: the connection is gone
            raise ResourceError(
                f"the Ray cluster no longer answers ({first_line(error)}); run the command again"
            ) from error
        return [Ended(self._running.pop(reference), self._cause(reference)) for reference in done]

    def _cause(self, reference: Any) -> str | None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return f"ended with {first_line(error.cause) if getattr(error, 'cause', None) else first_line(error)}"
        except self._ray.exceptions.RayError as error:
            return f"died: {type(error).__name__}, {first_line(error)}"
        return None

    def close(self, *, gently: bool) -> None:
        """Cancels everything that still runs, and leaves the cluster; one that was started here ends."""
        try:
            for reference in self._running:
                self._ray.cancel(reference, force=not gently)
            if gently and self._running:
                self._ray.wait([*self._running], num_returns=len(self._running), timeout=_PATIENCE)
        except Exception:  # the cluster may be what has died
            logging.getLogger(__name__).debug("cancelling failed", exc_info=True)
        finally:
            self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Checks that something listens at an address, which Ray itself takes minutes to find out.

    Raises:
        RecipeError: Nothing does.
    """
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise RecipeError(f"--address {address}: write it as HOST:PORT, as `ray start --head` prints it, or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED):
            pass
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RecipeError(
            f"--address {address}: cannot be reached ({cause}); check it, and that `ray start --head` runs there"
        ) from error
    if not address.startswith("ray://"):
        _check_ray(address)


def _check_ray(address: str) -> None:
    """Checks that a Ray cluster answers; asked in another process, since Ray ends the one in which it waits in vain.

    Raises:
        RecipeError: None does, or it wants a token.
    """
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWERED, check=False)
    except subprocess.TimeoutExpired as error:
        said = str(error.stderr or "") + str(error.stdout or "")
    else:
        if done.returncode == 0:
            return
        said = done.stderr + done.stdout
    if "AuthToken" in said or "Authentication" in said:
        raise RecipeError(
            f"--address {address}: the Ray cluster there wants a token; set RAY_AUTH_MODE=token and give it "
            "(RAY_AUTH_TOKEN, or the head's ~/.ray/auth_token), or start the cluster with RAY_AUTH_MODE=disabled"
        )
    raise RecipeError(f"--address {address}: something listens there, but it is no Ray cluster; give its HOST:PORT")
