"""Rows of text under a header, with no formatting of a particular terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `numeric` columns are right-aligned."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    numeric: tuple[int, ...] = field(default=())

    def to_csv(self) -> str:
        """Comma-separated, with a header."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """A GitHub table."""
        marks = ["---:" if index in self.numeric else "---" for index in range(len(self.columns))]
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, tuple(marks), *self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
