"""Progress where no bar can be drawn, such as in a log: a line now and then, and none about what is soon done."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prunecli.errors import RecipeError
from prunecli.phases import Reached
from prunecli.pipeline.sink import Advance
from prunecli.report.numbers import duration

INTERVAL_VARIABLE = "PRUNE_LOG_EVERY"
"""Seconds between two lines about the same work; 0: no lines; `_INTERVAL` if it is not set."""
_INTERVAL = 60.0
_NOTICED = 3.0
"""Seconds after which a phase is worth a line."""


class LogProgress:
    """Lines about phases that last, and about work that is counted.

    A phase gets a line when it has taken 3 seconds, another one every minute, and one with the time that it took. What
    is counted gets a line every minute; the phases in it get none. `PRUNE_LOG_EVERY` says something else than a minute.

    Args:
        tell: Writes a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._counted = False

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Work that is counted up to `total`.

        Raises:
            RecipeError: The variable `PRUNE_LOG_EVERY` is not a number of seconds.
        """
        interval, outer = _interval(), self._counted
        if outer or not interval:
            yield lambda done, text: None
            return
        self._counted = True
        work = _Counted(title, total)
        try:
            with _Watch(work.line, self._tell, interval, interval):
                yield work.advance
        finally:
            self._counted = outer

    @contextmanager
    def phase(self, name: str, *, undisturbed: bool = False) -> Iterator[Reached]:
        """Work that may last.

        Raises:
            RecipeError: The variable `PRUNE_LOG_EVERY` is not a number of seconds.
        """
        interval = _interval()
        if self._counted or not interval:
            yield lambda done, total, counted: None
            return
        start, where = time.perf_counter(), [""]

        def reached(done: int, total: int | None, counted: str) -> None:
            where[0] = f", {counted} {done + 1}" + (f" of {total}" if total is not None else "")

        def line() -> str:
            return f"{name}: running for {duration(time.perf_counter() - start)}{where[0]}"

        with _Watch(line, self._tell, min(_NOTICED, interval), interval) as watch:
            yield reached
        if watch.told:
            self._tell(f"{name}: finished after {duration(time.perf_counter() - start)}")


class _Counted:
    """Work that is counted."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, max(total, 1)
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int, str] | None = None

    def advance(self, done: int, text: str) -> None:
        """So much is done."""
        now = time.perf_counter()
        self._first = self._first or (now, done)  # what is resumed begins in the middle
        self._last = now, done, text

    def line(self) -> str:
        """What to say now."""
        if self._first is None or self._last is None:
            return f"{self._title}: not a step yet"
        (began, before), (now, done, text) = self._first, self._last
        left = (now - began) / (done - before) * (self._total - done) if done > before else None
        rest = f", about {duration(left)} left" if left is not None and done < self._total else ""
        return f"{self._title}: {100 * done // self._total} %, {text}{rest}"


class _Watch(threading.Thread):
    """Writes a line after a while and then regularly, also while nothing comes from the work itself.

    Attributes:
        told: Whether it has written any.
    """

    def __init__(self, line: Callable[[], str], tell: Callable[[str], None], first: float, interval: float) -> None:
        super().__init__(daemon=True)
        self._line, self._told_by, self._first, self._interval = line, tell, first, interval
        self._over = threading.Event()
        self.told = False

    def run(self) -> None:
        """Writes lines until the work is over."""
        wait = self._first
        while not self._over.wait(wait):
            self.told, wait = True, self._interval
            try:
                self._told_by(self._line())
            except (OSError, ValueError):  # nobody reads them any more
                return

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def _interval() -> float:
    """Seconds between lines.

    Raises:
        RecipeError: The variable is no such number.
    """
    text = os.environ.get(INTERVAL_VARIABLE)
    if not text:
        return _INTERVAL
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise RecipeError(
            f"{INTERVAL_VARIABLE}={text}: give the seconds between lines of progress, for instance 60, or 0 for none"
        )
    return seconds
