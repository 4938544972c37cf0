"""What a stage tells its caller while it works; the command line shows it, tests collect it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from prunecli.report.table import Table

Advance = Callable[[int, str], None]
"""Called with the work done so far and a short text."""


class Sink(Protocol):
    """Where notes and progress go; never results."""

    def note(self, text: str) -> None:
        """One line for a person."""
        ...

    def warn(self, text: str) -> None:
        """One line about something that may surprise."""
        ...

    def live(self, table: Table) -> None:
        """A table that takes the place of the last one of its title while a bar is drawn; elsewhere nothing."""
        ...

    def progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A context in which work is counted up to `total`."""
        ...
