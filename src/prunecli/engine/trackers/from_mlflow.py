"""MLflow: the server or store that MLFLOW_TRACKING_URI names, else `mlflow.db` in the current folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from prunecli.engine.trackers.base import PROJECT, TrackedRun, Tracker

_LOCAL = "sqlite:///mlflow.db"
_AT_ONCE, _LONGEST = 100, 500
"""Parameters in one request, and letters of their values, that every store of MLflow takes."""


class MLflowTracker(Tracker):
    """Writes through MLflow's client, which leaves its global run and its autologging alone."""

    def __init__(self) -> None:
        # Otherwise a server that does not answer holds up training for minutes, seven times longer each.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._parameter: Any = Param
        self._kind: Any = MlflowClient
        self._client: Any = None
        self._run = ""

    def start(self, run: TrackedRun, known: str | None, step: int) -> str:
        """Begins a run in the experiment MLFLOW_EXPERIMENT_NAME, or sets one back to running."""
        for name in ("alembic", "mlflow"):  # they tell how the database was made
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = self._kind(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or _LOCAL)
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._run = known
            return known
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        self._run = self._client.create_run(number, run_name=run.name).info.run_id
        settings = [self._parameter(key, str(value)[:_LONGEST]) for key, value in run.settings.items()]
        for first in range(0, len(settings), _AT_ONCE):
            self._client.log_batch(self._run, params=settings[first : first + _AT_ONCE])
        return self._run

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Adds metrics."""
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=step)

    def finish(self, *, failed: bool) -> None:
        """Says how it ended."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
