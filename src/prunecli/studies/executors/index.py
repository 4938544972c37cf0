"""The table of executors: what a name stands for, imported when it is used."""

from __future__ import annotations

from collections.abc import Callable

from prunecli.errors import RecipeError
from prunecli.registry import Registry
from prunecli.studies.executors.base import Executor, Resources

EXECUTORS: Registry[Callable[[Resources], Executor]] = Registry(
    "executor",
    "prunecli.executors",
    {
        "local": "prunecli.studies.executors.local:LocalExecutor",
        "ray": "prunecli.studies.executors.ray_tasks:RayExecutor",
        "slurm": "prunecli.studies.executors.slurm:SlurmExecutor",
    },
    RecipeError,
)
