"""Notes and progress of a stage: the command line shows them, tests collect them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from prunecli.phases import Reached
from prunecli.report.table import Table

Advance = Callable[[int, str], None]
"""Called with the work done so far and a short text."""


class Sink(Protocol):
    """Where notes and progress go; never results."""

    def note(self, text: str) -> None:
        """One line for a person."""
        ...

    def warn(self, text: str) -> None:
        """One line about something unexpected."""
        ...

    def aside(self, table: Table) -> None:
        """A table for a person that is no result."""
        ...

    def live(self, table: Table) -> None:
        """A live table below the progress bar, replacing the last one with that title; ignored without a bar."""
        ...

    def progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A context in which work is counted up to `total`."""
        ...

    def phase(self, name: str, *, undisturbed: bool = False) -> AbstractContextManager[Reached]:
        """A context of work that may last, whose amount may not be known; see `prunecli.phases.phase`."""
        ...
