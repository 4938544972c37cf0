"""The log of a training run: always metrics.jsonl, and trackers on request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from prunecli import ranks
from prunecli.checkpoint.durable import write_text_atomically
from prunecli.engine.trackers.base import TrackedRun, Tracker
from prunecli.errors import ResourceError, first_line


class Tracking:
    """The trackers of one training run; one that fails is given up, with a warning.

    Args:
        trackers: By name, not started yet.
        run: What they are told.
        known_in: File with what trackers know the run by, so that it can be continued; None: it never is.
        warn: Told about trackers that fail.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], run: TrackedRun, known_in: Path | None, warn: Callable[[str], None]
    ) -> None:
        self._waiting, self._started, self._seen = dict(trackers), dict[str, Tracker](), dict[str, int]()
        self._run, self._known_in, self._warn = run, known_in, warn

    def start(self, step: int, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Starts the trackers.

        Args:
            step: The first step that follows.
            earlier: Rows that an earlier part of the run has written, some perhaps of steps that come again. Trackers
                that know the run have them, and the others get those before `step`.
        """
        known = _read_known(self._known_in) if earlier else {}
        seen = max((int(row["epoch"]) for row in earlier), default=step - 1)
        found: dict[str, str | None] = {}
        for name, tracker in self._waiting.items():
            with self._guarded(name, tracker):
                before = known.get(name)
                found[name] = tracker.start(self._run, before, step if before is None else max(step, seen + 1))
                self._started[name] = tracker
                self._seen[name] = 0 if before is None else seen
                for row in earlier if before is None else ():
                    if int(row["epoch"]) < step:
                        tracker.log(_numbers(row), int(row["epoch"]))
        self._waiting = {}
        if self._known_in is not None and found:
            with suppress(OSError, ResourceError):  # it is missed only if the run is continued
                write_text_atomically(self._known_in, json.dumps(found))

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds a row; its "epoch" is the step."""
        step = int(row["epoch"] or 0)
        for name, tracker in list(self._started.items()):
            if step > self._seen[name]:
                with self._guarded(name, tracker):
                    tracker.log(_numbers(row), step)

    def finish(self, *, failed: bool) -> None:
        """Ends what was started."""
        for name, tracker in list(self._started.items()):
            with self._guarded(name, tracker):
                tracker.finish(failed=failed)
        self._started = {}

    @contextmanager
    def _guarded(self, name: str, tracker: Tracker) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever somebody else's library raises
            self._started.pop(name, None)
            self._warn(f"{name}: tracking failed ({first_line(error)}); training goes on without it")


class MetricsLog:
    """Writes one JSON object per epoch, and passes its numbers on to trackers; of several processes, rank 0 does.

    Args:
        path: The .jsonl file; a file that exists is replaced.
        tracking: Trackers, if any.
        continued: Whether to keep rows of earlier epochs.
        warn: Called when a row cannot be written; a full disk costs the log, not the training.
    """

    def __init__(
        self,
        path: Path,
        *,
        tracking: Tracking | None = None,
        continued: bool = False,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._path, self._continued, self._warn, self._failed = path, continued, warn, False
        self._file: IO[str] | None = None  # opened with the first row, so a run that cannot start leaves nothing
        self._tracking, self._tracked = tracking, False

    def write(self, row: Mapping[str, float | int | None], tables: Sequence[Mapping[str, Any]] = ()) -> None:
        """Appends one row; its "epoch" is the step of the curves.

        Args:
            row: Numbers by name; those that are None are left out.
            tables: What training hooks have to show, as plain data.
        """
        if not ranks.writes():
            return
        epoch = int(row["epoch"] or 0)
        entry: dict[str, Any] = {key: value for key, value in row.items() if value is not None}
        if self._tracking is not None and not self._tracked:
            self._tracked = True
            self._tracking.start(epoch, _rows(self._path) if self._continued else ())
        if not self._failed:
            self._append(epoch, entry | ({"tables": list(tables)} if tables else {}))
        if self._tracking is not None:
            self._tracking.log(entry)

    def _append(self, epoch: int, entry: Mapping[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self._open(epoch)
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except (OSError, ResourceError) as error:
            self._failed = True
            cause = getattr(error, "strerror", None) or error
            self._warn(f"{self._path}: could not be written ({cause}); training goes on without it")

    def _open(self, epoch: int) -> IO[str]:
        kept = [row for row in _rows(self._path) if row["epoch"] < epoch] if self._continued else []
        write_text_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        return self._path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be flushed has been warned about
                self._file.close()
        if self._tracking is not None:
            self._tracking.finish(failed=kind is not None)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key not in ("epoch", "tables")}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a log; a line that a crash cut off is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and line.endswith("\n") and isinstance(row.get("epoch"), int):
                rows.append(row)
    return rows


def _read_known(path: Path | None) -> dict[str, str]:
    """What trackers know an unfinished run by; nothing where the file is missing or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}
