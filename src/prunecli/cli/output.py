"""All printing: results go to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

    from prunecli.cli.live import LiveBars
    from prunecli.phases import Reached
    from prunecli.pipeline.log_progress import LogProgress
    from prunecli.pipeline.sink import Advance
    from prunecli.report.table import Table

from prunecli.cli.joining import is_silent

_CONTROL = dict.fromkeys((*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)), "?")
Mode = Literal["human", "json", "quiet", "silent"]


class Output:
    """A sink with three modes: human, json (one document) and quiet (results only, no notes).

    Of several processes that work together all but one are silent, whatever the mode.

    Args:
        mode: What to print.
        debug: Whether errors come with a traceback.
    """

    def __init__(self, mode: Mode = "human", *, debug: bool = False) -> None:
        self.mode: Mode = "silent" if is_silent() else mode
        self.debug = debug
        self._bars: LiveBars | None = None
        self._log: LogProgress | None = None
        self._tables = self._documents = 0

    def note(self, text: str) -> None:
        """One line on stderr, except in quiet mode."""
        if self.mode in ("human", "json"):
            self._err(text)

    def warn(self, text: str) -> None:
        """One line on stderr, except in quiet mode."""
        if self.mode in ("human", "json"):
            self._err(f"warning: {text}")

    def hint(self, command: str) -> None:
        """A command that may follow, on stderr, in human mode alone."""
        if self.mode == "human":
            self._err(f"next: {command}")

    def table(self, table: Table) -> None:
        """A table on stdout: drawn on a terminal, tab-separated elsewhere; nothing is cut off."""
        if self.mode in ("json", "silent"):
            return
        if self._tables:
            print()
        self._tables += 1
        if not sys.stdout.isatty():
            rows = [table.columns, *table.rows]
            print("\n".join("\t".join(" ".join(_printable(cell).split()) for cell in row) for row in rows))
            return
        _console(sys.stdout).print(_drawn(table))

    def text(self, text: str) -> None:
        """Text on stdout as it is: what the user asked for in human and quiet mode."""
        if self.mode in ("human", "quiet"):
            text = _printable(text)
            sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def document(self, document: Any) -> None:
        """The one JSON document on stdout, json mode only."""
        if self.mode == "json":
            import json

            self._documents += 1
            print(json.dumps(document, indent=2, allow_nan=False))

    def aside(self, table: Table) -> None:
        """A table on stderr, in human mode alone."""
        if self.mode == "human":
            _console(sys.stderr).print(_drawn(table))

    def live(self, table: Table) -> None:
        """A table below the bar that is drawn, in place of the last one of its title; elsewhere nothing."""
        if self._bars is not None and self._bars.drawn:
            self._bars.show(_drawn(table))

    def error(self, message: str, code: int, kind: str) -> None:
        """One line on stderr, or the JSON document of a failed command that has printed none."""
        if self.mode == "json" and not self._documents:
            self.document({"error": {"type": kind, "message": message, "exit_code": code}})
        else:
            self.complain(message)

    def complain(self, message: str) -> None:
        """One line on stderr in every mode."""
        print(f"error: {_printable(message)}", file=sys.stderr)

    def progress(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A live bar on a terminal; elsewhere a line a minute."""
        shown = self._progress()
        return shown.progress(title, total) if shown is not None else _unseen()

    def phase(self, name: str, *, undisturbed: bool = False) -> AbstractContextManager[Reached]:
        """A live bar on a terminal; elsewhere lines about what takes longer than three seconds."""
        shown = self._progress()
        return shown.phase(name, undisturbed=undisturbed) if shown is not None else _unseen()

    def _progress(self) -> LiveBars | LogProgress | None:
        """What shows progress; results alone and one of several processes have none."""
        if self.mode not in ("human", "json"):
            return None
        if self.mode == "human" and _interactive(sys.stderr):
            from prunecli.cli.live import LiveBars

            self._bars = self._bars or LiveBars(_console(sys.stderr))
            return self._bars
        from prunecli.pipeline.log_progress import LogProgress

        self._log = self._log or LogProgress(self._err)
        return self._log

    def _err(self, text: str) -> None:
        if self._bars is not None and self._bars.drawn:  # print above the bars
            self._bars.console.print(_plain(text), soft_wrap=True)
        else:
            sys.stderr.write(f"{_printable(text)}\n")  # at once, so that no signal comes between a line and its end
            sys.stderr.flush()


@contextmanager
def _unseen() -> Iterator[Any]:
    """Progress that nobody sees."""
    yield lambda *reached: None


def _drawn(table: Table) -> Any:
    """The table as rich draws it."""
    from rich import box
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False)
    for index, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if index in table.numeric else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(_plain(cell) for cell in row))
    return drawn


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(_printable(text))


def _printable(text: str) -> str:
    """The text without control characters, which could come from a stranger's file and move a terminal's cursor."""
    return text.translate(_CONTROL)


def _interactive(stream: IO[str]) -> bool:
    """Whether escape codes may be written: a terminal, and nobody asked for none."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    live = _interactive(stream)
    # Some environment variables make rich write escape codes into files; only a terminal decides here.
    return Console(file=stream, force_terminal=live, color_system="auto" if live else None, highlight=False)


_current = [Output()]


def use_output(output: Output) -> None:
    """Makes `output` the one that errors of the running command go to."""
    _current[0] = output


def current_output() -> Output:
    """The output of the running command."""
    return _current[0]
