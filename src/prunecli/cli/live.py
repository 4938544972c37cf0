"""A live bar on a terminal, with tables below it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class LiveBar:
    """One bar; text printed on its console appears above it.

    Args:
        console: Where to draw.
        title: Text before the bar.
        total: Amount of work.

    Attributes:
        console: Where to print while the bar is drawn.
    """

    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task = self._progress.add_task(title, total=total, text="")
        self._tables: dict[str, Any] = {}
        self._live = Live(self._progress, console=console, transient=True)

    def advance(self, done: int, text: str) -> None:
        """Moves the bar to `done` and writes a short text behind it."""
        self._progress.update(self._task, completed=done, text=text)

    def show(self, table: Any) -> None:
        """Draws a rich table below the bar, in place of the last one of its title."""
        self._tables[str(table.title)] = table
        self._live.update(Group(self._progress, *self._tables.values()))

    def __enter__(self) -> LiveBar:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
