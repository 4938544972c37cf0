"""Runs a sweep: hands out cells and what they share, takes in what they come to, and can be killed at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.checkpoint.durable import crash_point
from prunecli.checkpoint.locking import locked
from prunecli.errors import Interrupted
from prunecli.pipeline.sink import Advance, Sink
from prunecli.pipeline.sweep_cells import FAILURE_NAME, finished_row, read_failure
from prunecli.report.numbers import number_of
from prunecli.report.pareto import Choice
from prunecli.report.sweep import SweepRow, read_lines
from prunecli.report.sweep_tables import running_table, told
from prunecli.studies.executors.base import Ended, Executor
from prunecli.studies.sweeping.cells import Cell, Shared
from prunecli.studies.sweeping.folder import LOG_NAME, Place, SweepFolder, last_line
from prunecli.studies.sweeping.search import Proposer

_TRIES = 3
"""How often a job is started whose process dies."""
_GLANCE = 0.5
"""Seconds between two looks at what is running."""


@dataclass
class _Running:
    """A job that was submitted."""

    work: Cell | Shared
    label: str
    since: float = field(default_factory=time.monotonic)


@dataclass
class Run:
    """What a call has done.

    Attributes:
        rows: All cells that have ended, now or earlier, in order.
        ran: Names of cells that this call ran to their end.
    """

    rows: list[SweepRow] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)


class Driver:
    """Runs cells until all have ended.

    Args:
        folder: Where they are.
        proposer: Which cells there are.
        place: Where jobs run.
        sink: Receives notes and progress.
        retry_failed: Whether cells that have failed are run again.
        objective: What is looked for, for notes.
    """

    def __init__(
        self,
        folder: SweepFolder,
        proposer: Proposer,
        place: Place,
        sink: Sink,
        *,
        retry_failed: bool = False,
        objective: Choice | None = None,
    ) -> None:
        self._folder, self._proposer, self._place, self._sink = folder, proposer, place, sink
        self._retry_failed, self._objective = retry_failed, objective
        self._waiting: dict[str, Cell] = {}
        self._running: dict[str, _Running] = {}
        self._deaths: dict[str, int] = {}
        self._ready: set[str] = set()
        self._broken: dict[str, str] = {}
        self._seconds: dict[str, float | None] = {}
        self._rows: dict[str, SweepRow] = {}
        self._cells: dict[str, Cell] = {}
        self._head: Mapping[str, Any] = {}
        self._ran: list[str] = []

    def run(self, start: Callable[[], Executor], head: Mapping[str, Any], command: str) -> Run:
        """Runs everything that is not finished.

        Args:
            start: Makes the executor, once something is to be run.
            head: What the sweep is, for its folder.
            command: How to run the sweep again.

        Raises:
            Interrupted: A signal ended it; everything that had finished stays.
            RecipeError: Another process is running this sweep.
            ResourceError: Jobs cannot be started any more.
        """
        with locked(self._folder.path / ".driver", command, self._folder.path):
            self._head = head
            self._look()
            if self._waiting or not self._proposer.exhausted:
                self._work(start)
        return Run([self._rows[name] for name in self._cells if name in self._rows], self._ran)

    def _look(self) -> None:
        """Finds what is finished, and writes the results anew, in which a crash may have left half a line."""
        self._seconds = {name: row.seconds for name, row in read_lines(self._folder.path).items()}
        for cell in self._proposer.proposed():
            self._take(cell)
        self._write_head()
        self._folder.write_results([row.model_dump(mode="json") for row in self._rows.values()])
        crash_point("sweep:looked")

    def _take(self, cell: Cell) -> None:
        """A cell that is to be run, or was."""
        if cell.name in self._waiting or cell.name in self._running:
            return
        self._cells.setdefault(cell.name, cell)
        if cell.name in self._rows:
            self._proposer.ended(self._rows[cell.name])
            return
        row = self._finished_earlier(cell)
        if row is not None:
            self._rows[cell.name] = row
            self._proposer.ended(row)
        else:
            self._waiting[cell.name] = cell

    def _write_head(self) -> None:
        """Writes what the sweep is, with the cells that are known by now: who reads it looks for their files."""
        stages = next(([stage.stage for stage in cell.plan.recipe.stages] for cell in self._cells.values()), [])
        cells = {name: dict(cell.values) for name, cell in self._cells.items()}
        self._folder.write_head({**self._head, "stages": stages, "cells": cells})

    def _finished_earlier(self, cell: Cell) -> SweepRow | None:
        folder = self._folder.cell(cell.name)
        if self._folder.is_done(cell):
            return finished_row(cell.name, cell.values, folder, self._seconds.get(cell.name))
        failure = read_failure(folder)
        if failure is not None and self._retry_failed:
            (folder / FAILURE_NAME).unlink(missing_ok=True)
            return None
        return _failed(cell, failure.message) if failure is not None else None

    def _work(self, start: Callable[[], Executor]) -> None:
        executor = start()
        gently = True
        try:
            cells = number_of(self._proposer.total, "cell")
            self._sink.note(f"{len(self._waiting)} of {cells} to run: {executor.described}")
            with self._sink.progress("sweep", self._proposer.total) as advance:
                self._loop(executor, advance)
            gently = False
        except KeyboardInterrupt as error:
            number = getattr(error, "signal", 2)
            cells = number_of(self._proposer.total, "cell")
            done = sum(row.status == "finished" for row in self._rows.values())
            raise Interrupted(
                f"stopped; {done} of {cells} finished, and what is finished stays so. Continue with the same command",
                number,
            ) from error
        finally:
            executor.close(gently=gently)

    def _loop(self, executor: Executor, advance: Advance) -> None:
        while True:
            self._fill(executor)
            advance(len(self._rows), f"{len(self._running)} running")
            if not self._running:
                if not self._waiting:
                    return
                continue  # what was waited for has failed, and the cells with it
            self._sink.live(running_table(self._glances()))
            for ended in executor.wait(_GLANCE):
                crash_point("sweep:ended")
                self._end(ended)

    def _fill(self, executor: Executor) -> None:
        """Hands out jobs while there is room."""
        while len(self._running) < executor.slots:
            job = self._next()
            if job is None:
                return
            work, before, label = job
            self._running[work.name] = _Running(work, label)
            executor.submit(self._folder.job(work, before, self._place))

    def _next(self) -> tuple[Cell | Shared, Shared | None, str] | None:
        """What to run next: a cell, or first what it starts from; None: nothing now."""
        for cell in [*self._waiting.values()]:
            job = self._startable(cell)
            if job is not None:
                return job
        while (cell_or_none := self._proposer.next()) is not None:
            self._take(cell_or_none)
            self._write_head()
            if cell_or_none.name in self._waiting:
                job = self._startable(cell_or_none)
                if job is not None:
                    return job
        return None

    def _startable(self, cell: Cell) -> tuple[Cell | Shared, Shared | None, str] | None:
        before: Shared | None = None
        for shared in cell.shared:
            if shared.name in self._running:
                return None
            reason = self._failure_of(shared)
            if reason is not None:
                self._note(_failed(cell, f"what it shares with other cells has failed: {reason}"))
                return None
            if shared.name not in self._ready:
                if not self._folder.is_done(shared):
                    return shared, before, "shared: " + ", ".join(stage.stage for stage in shared.plan.recipe.stages)
                self._ready.add(shared.name)
            before = shared
        del self._waiting[cell.name]
        return cell, before, cell.label

    def _failure_of(self, shared: Shared) -> str | None:
        if shared.name in self._broken or shared.name in self._ready:
            return self._broken.get(shared.name)
        folder = self._folder.shared(shared.name)
        failure = read_failure(folder)
        if failure is not None and self._retry_failed and shared.name not in self._deaths:
            (folder / FAILURE_NAME).unlink()
            failure = None
        return failure.message if failure is not None else None

    def _end(self, ended: Ended) -> None:
        running = self._running.pop(ended.name)
        seconds = time.monotonic() - running.since
        work = running.work
        is_cell = isinstance(work, Cell)
        folder = self._folder.cell(work.name) if is_cell else self._folder.shared(work.name)
        if self._folder.is_done(work):
            if isinstance(work, Cell):
                self._note(finished_row(work.name, work.values, folder, round(seconds, 3)))
            return
        failure = read_failure(folder)
        if failure is not None:
            self._fail(work, failure.message)
            return
        cause = ended.died or "ended without a result"
        self._deaths[work.name] = self._deaths.get(work.name, 0) + 1
        line = last_line(folder / LOG_NAME)
        said = f"its process {cause.removeprefix('its process ')}{f'; the last that it said: {line}' if line else ''}"
        if self._deaths[work.name] < _TRIES:
            self._sink.warn(f"{running.label}: {said}; starting it again")
            if isinstance(work, Cell):
                self._waiting = {work.name: work, **self._waiting}
            return
        self._fail(work, f"{said}; tried {_TRIES} times")

    def _fail(self, work: Cell | Shared, reason: str) -> None:
        if isinstance(work, Cell):
            self._note(_failed(work, reason))
        else:
            self._broken[work.name] = reason

    def _note(self, row: SweepRow) -> None:
        """A cell has ended."""
        self._waiting.pop(row.cell, None)
        self._rows[row.cell] = row
        if row.status == "finished":
            self._ran.append(row.cell)
        self._folder.add_result(row.model_dump(mode="json"))
        crash_point("sweep:noted")
        self._sink.note(f"{len(self._rows)}/{self._proposer.total} {told(row, self._objective)}")
        self._proposer.ended(row)

    def _glances(self) -> Iterator[tuple[str, float, str]]:
        for name, running in self._running.items():
            is_cell = isinstance(running.work, Cell)
            folder = self._folder.cell(name) if is_cell else self._folder.shared(name)
            yield running.label, time.monotonic() - running.since, last_line(folder / LOG_NAME)


def _failed(cell: Cell, reason: str) -> SweepRow:
    return SweepRow(cell=cell.name, values=dict(cell.values), status="failed", error=reason)
