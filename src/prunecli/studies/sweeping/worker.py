"""One job of a sweep: runs a cell, or a beginning that cells share, by the code that `prune run` runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock

from prunecli.checkpoint.durable import crash_point
from prunecli.errors import Interrupted, PruneError, ResourceError, described
from prunecli.own_code import allow
from prunecli.phases import Reached
from prunecli.pipeline.log_progress import LogProgress
from prunecli.pipeline.run import can_continue, is_finished, run_recipe, start_after
from prunecli.pipeline.run_folder import PLAN_NAME
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.sweep_cells import FAILURE_NAME, Failure, write_failure
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.loader import parse_yaml
from prunecli.recipe.resolve import Plan, resolve
from prunecli.report.table import Table


class LogSink:
    """Notes go to standard error, which is the log of the cell; tables for people go nowhere."""

    def __init__(self) -> None:
        self._progress = LogProgress(self.note)

    def note(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """A line about something unexpected."""
        self.note(f"warning: {text}")

    def aside(self, table: Table) -> None:
        """Nothing."""

    def live(self, table: Table) -> None:
        """Nothing."""

    def progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A line a minute."""
        return self._progress.progress(title, total)

    def phase(self, name: str, *, undisturbed: bool = False) -> AbstractContextManager[Reached]:
        """Lines about what lasts."""
        return self._progress.phase(name, undisturbed=undisturbed)


def run_job(
    *, folder: str, shown: str, plan: str, before: str | None, scores: str, lock: str, allowed: Sequence[str] = ()
) -> None:
    """Runs a plan into a folder, unless that is done; what is finished of it is not run again.

    Whoever else runs it at the moment, for instance for a driver that has died, is waited for. An error is noted in the
    folder; one that another attempt may not meet (a full disk, a signal) is raised.

    Args:
        folder: The folder of the run.
        shown: The same as the user knows it, for the command in reports.
        plan: The plan, as YAML.
        before: The folder of a finished run of its first stages.
        scores: The folder of scores that cells share.
        lock: A file that is locked meanwhile.
        allowed: Modules of the user's own that may run.

    Raises:
        ResourceError: The disk or memory is full.
        Interrupted: A signal ended it; its state is saved.
    """
    for module in allowed:
        allow(module)
    place, sink = Path(folder), LogSink()
    Path(lock).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        read = resolve(parse_yaml(plan, f"{shown}/{PLAN_NAME}"), confined=False)
        if is_finished(read, place):
            return
        place.mkdir(parents=True, exist_ok=True)
        (place / FAILURE_NAME).unlink(missing_ok=True)
        try:
            _run(read, place, shown, Path(before) if before is not None else None, Path(scores), sink)
        except (Interrupted, ResourceError):
            raise
        except PruneError as error:
            sink.note(f"error: {error}")
            write_failure(place, Failure(str(error), type(error).__name__, error.exit_code))
        except Exception as error:  # of whatever library: the other cells go on
            import traceback

            traceback.print_exc()
            write_failure(place, Failure(f"{described(error)} (see {shown}/sweep.log)", type(error).__name__, 1))


def _run(plan: Plan, folder: Path, shown: str, before: Path | None, scores: Path, sink: LogSink) -> None:
    command = f"prune run {shown}/{PLAN_NAME}"
    crash_point("cell:started")
    if before is not None and not can_continue(plan, folder):
        start_after(plan, folder, before)
        crash_point("cell:seeded")
    resume = can_continue(plan, folder)
    space = Workspace(plan.recipe, sink, command, f"{command} --out {shown} --resume", resume=resume, force=not resume)
    space.scores = scores
    outcome = run_recipe(plan, folder, space)
    crash_point("cell:finished")
    if outcome.failure is not None:
        sink.note(f"gate: {outcome.failure}")
