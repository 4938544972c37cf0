"""What a sweep costs beside the work of its cells: for each executor, and for looking at cells that are finished.

python benchmarks/sweep.py -o benchmarks/results/sweep.json [--executors local ray slurm] [--jobs 10] [--cells 100]
    [--only executors looking]

A job that does nothing is handed to each executor, one after the other and the executors in turns, and the time until
it is known to have ended is taken. `slurm` runs processes of this machine (cluster=local): what a real queue adds is
not in it. Then the cells of a grid are made, and looked at. With --only, the other section stays as the file has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prunecli.measure.environment import describe_environment
from prunecli.recipe.axes import settings_of
from prunecli.recipe.sweep_file import load_sweep
from prunecli.studies.executors.base import Executor, Job, Resources
from prunecli.studies.executors.index import EXECUTORS
from prunecli.studies.sweeping.cells import CellMaker
from prunecli.studies.sweeping.folder import SweepFolder
from prunecli.studies.sweeping.search import grid

SWEEP = "recipe: quickstart\naxes:\n  ratio: {{low: 0.1, high: 0.9, steps: {cells}}}\n"


def main(words: Sequence[str]) -> None:
    """Measures, and writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--executors", nargs="+", default=["local", "ray", "slurm"])
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=("executors", "looking"), default=("executors", "looking"))
    asked = parser.parse_args(words)
    result: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if "executors" in asked.only:
            result["executors"] = _executors(asked.executors, asked.jobs, Path(folder))
        if "looking" in asked.only:
            result["looking"] = _looking(asked.cells, Path(folder))
    result["environment"] = describe_environment()
    asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _executors(names: Sequence[str], jobs: int, folder: Path) -> dict[str, Any]:
    running: dict[str, Executor] = {}
    rows: dict[str, Any] = {}
    for name in names:  # the one that forks comes first, before another has threads
        options = {"cluster": "local"} if name == "slurm" else {}
        start = time.perf_counter()
        running[name] = EXECUTORS.load(name)(Resources(jobs=1, options=options, workspace=str(folder)))
        rows[name] = {"start": time.perf_counter() - start, "first": _timed(running[name], folder, f"{name}-first")}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(jobs):
        for name in names:
            times[name].append(_timed(running[name], folder, f"{name}-{number}"))
    for name, executor in running.items():
        executor.close(gently=False)
        rows[name] |= {"median": statistics.median(times[name]), "least": min(times[name]), "most": max(times[name])}
    return rows


def _timed(executor: Executor, folder: Path, name: str) -> float:
    """Seconds from handing in a job that does nothing until it has ended."""
    start = time.perf_counter()
    executor.submit(Job(name, "builtins:dict", {}, str(folder), str(folder / f"{name}.log")))
    ended = []
    while not ended:
        ended = executor.wait(5.0)
    if ended[0].died is not None:
        raise SystemExit(f"{name}: {ended[0].died}")
    return time.perf_counter() - start


def _looking(count: int, folder: Path) -> dict[str, float]:
    """Seconds for each cell: to make it from the file, and to see whether it is finished."""
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(cells=count))
    sweep = load_sweep(path)
    make, look = _seconds(lambda: grid(sweep.axes, CellMaker(sweep, settings_of(sweep)))), SweepFolder(folder, "")
    cells = list(grid(sweep.axes, CellMaker(sweep, settings_of(sweep))).proposed())
    return {
        "cells": len(cells),
        "make": make / len(cells),
        "look": _seconds(lambda: [look.is_done(cell) for cell in cells]) / len(cells),
    }


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
