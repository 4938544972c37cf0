"""The folder of a sweep: where everything is, and which cells are finished, by their own files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.durable import remove_leftovers, write_text_atomically
from prunecli.errors import RecipeError
from prunecli.pipeline.run import is_finished, plan_text
from prunecli.report.sweep import CELLS, RESULTS_NAME, SWEEP_NAME, SWEEP_SCHEMA
from prunecli.studies.executors.base import Job
from prunecli.studies.sweeping.cells import Cell, Shared

LOG_NAME = "sweep.log"
_FUNCTION = "prunecli.studies.sweeping.worker:run_job"


class SweepFolder:
    """The folder of a sweep.

    Args:
        path: The folder.
        command: How to run the sweep again.
    """

    def __init__(self, path: Path, command: str) -> None:
        self.path, self._command = path, command

    def check(self) -> None:
        """Checks that the folder may be used.

        Raises:
            RecipeError: It holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{self.path}: is a file; --out takes the name of a folder")
        if self.path.is_dir() and not (self.path / SWEEP_NAME).is_file() and any(self.path.glob("[!.]*")):
            raise RecipeError(f"{self.path}: holds something else than a sweep; choose another folder with --out")

    def cell(self, name: str) -> Path:
        """The folder of a cell, which is that of a run."""
        return self.path / CELLS / name

    def shared(self, name: str) -> Path:
        """The folder of work that cells share, which is that of a run."""
        return self.path / "shared" / name

    def is_done(self, work: Cell | Shared) -> bool:
        """Whether a cell, or a beginning that others can start from, is finished: its own files say so."""
        if isinstance(work, Cell):
            return is_finished(work.plan, self.cell(work.name))
        return is_finished(work.plan, self.shared(work.name), whole=True)

    def write_head(self, document: Mapping[str, Any]) -> None:
        """Writes what the sweep is, and which cells it has; see `prunecli.report.sweep.SweepHead`."""
        text = json.dumps({"schema": SWEEP_SCHEMA, **document}, indent=2, allow_nan=False)
        write_text_atomically(self.path / SWEEP_NAME, text + "\n")

    def write_results(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the rows of all cells that there is something to say of."""
        path = self.path / RESULTS_NAME
        remove_leftovers(path)
        write_text_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def add_result(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a cell that has just ended; a crash leaves at most a part of the last line."""
        with (self.path / RESULTS_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def job(self, work: Cell | Shared, before: Shared | None, where: Place) -> Job:
        """The job that runs a cell, or a beginning that cells share.

        Args:
            work: What to run.
            before: The shared beginning that it starts from.
            where: What the process has to know beside that.
        """
        folder = self.cell(work.name) if isinstance(work, Cell) else self.shared(work.name)
        arguments = {
            "folder": str(folder.resolve()),
            "shown": str(folder),
            "plan": plan_text(work.plan),
            "before": str(self.shared(before.name).resolve()) if before is not None else None,
            "scores": str((self.path / "shared" / "scores").resolve()),
            "lock": str((self.path / "locks" / f"{work.name}.lock").resolve()),
            "allowed": list(where.allowed),
        }
        return Job(work.name, _FUNCTION, arguments, where.folder, str((folder / LOG_NAME).resolve()))


@dataclass(frozen=True)
class Place:
    """Where jobs run, and the modules whose code may run there."""

    folder: str
    allowed: tuple[str, ...] = ()


def last_line(log: Path, limit: int = 2000) -> str:
    """The last line of a log, of a run that may be writing it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - limit))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")
