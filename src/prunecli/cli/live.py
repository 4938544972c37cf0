"""Live bars on a terminal, with tables below them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from prunecli.phases import Reached
from prunecli.pipeline.sink import Advance

_DRAWN_EVERY = 0.2
"""Seconds."""
_BAR = 16
"""Cells."""


class LiveBars:
    """A bar for everything that is counted at the moment, and one for the innermost phase; gone when these are over.

    Text printed on the console meanwhile appears above them.

    Args:
        console: Where to draw.

    Attributes:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._phases: list[TaskID] = []
        self._tables: dict[str, Any] = {}
        self._drawing: _Drawing | None = None

    @property
    def drawn(self) -> bool:
        """Whether there is anything to see."""
        return self._drawing is not None

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Work that is counted up to `total`, with a short text behind its bar."""
        with self._row(title, total) as (drawing, row):

            def advance(done: int, text: str) -> None:
                if drawing.is_due() or done >= total:
                    drawing.bars.update(row, completed=done, text=text, share=f"{100 * done // max(total, 1)}%")

            yield advance

    @contextmanager
    def phase(self, name: str, *, undisturbed: bool = False) -> Iterator[Reached]:
        """A phase; an `undisturbed` one is drawn by itself, between its steps."""
        with self._row(name, None) as (drawing, row), drawing.by_steps(undisturbed):
            outer = self._phases[-1:]
            for other in outer:
                drawing.bars.update(other, visible=False)
            self._phases.append(row)

            def reached(done: int, total: int | None, counted: str) -> None:
                if not drawing.is_due():
                    return
                text = f"{counted} {done + 1}" + (f" of {total}" if total else "")
                share = f"{100 * done // total}%" if total else ""
                drawing.bars.update(row, completed=done, total=total, text=text, share=share)
                if undisturbed:
                    drawing.live.refresh()

            try:
                yield reached
            finally:
                self._phases.remove(row)
                for other in outer:
                    drawing.bars.update(other, visible=True)

    def show(self, table: Any) -> None:
        """Draws a rich table below the bars, in place of the last one of its title."""
        self._tables[str(table.title)] = table
        if self._drawing is not None:
            self._drawing.live.update(Group(self._drawing.bars, *self._tables.values()))

    @contextmanager
    def _row(self, title: str, total: int | None) -> Iterator[tuple[_Drawing, TaskID]]:
        """One more bar; the first one begins to draw, and the last one ends it."""
        outermost = self._drawing is None
        drawing = self._drawing = self._drawing or _Drawing(self.console)
        row = drawing.bars.add_task(title, total=total, text="", share="")
        try:
            if outermost:
                drawing.start()
            yield drawing, row
        finally:
            if outermost:
                self._drawing = None
                self._tables.clear()
                drawing.stop()
            else:
                drawing.bars.remove_task(row)


class _Drawing:
    """What is on the terminal at the moment, drawn again and again by a thread.

    Attributes:
        bars: The bars.
        live: Draws them.
    """

    def __init__(self, console: Console) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR),
            TextColumn("{task.fields[share]:>4}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            expand=True,
        )
        self.live = Live(self.bars, console=console, transient=True, auto_refresh=False)
        self._over, self._by_steps = threading.Event(), False
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._due = 0.0

    def is_due(self) -> bool:
        """Whether a change would be seen: often the work is faster than the drawing."""
        now = time.perf_counter()
        if now < self._due:
            return False
        self._due = now + _DRAWN_EVERY / 2
        return True

    @contextmanager
    def by_steps(self, wanted: bool) -> Iterator[None]:
        """Meanwhile, if `wanted`, the thread draws nothing: it would take time from what is timed."""
        before, self._by_steps = self._by_steps, self._by_steps or wanted
        try:
            yield
        finally:
            self._by_steps = before

    def start(self) -> None:
        """Begins."""
        self.live.start(refresh=True)
        self._thread.start()

    def stop(self) -> None:
        """Leaves nothing on the terminal."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.live.stop()

    def _draw(self) -> None:
        while not self._over.wait(_DRAWN_EVERY):
            if not self._by_steps:
                self.live.refresh()
