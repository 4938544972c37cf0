"""What a stage came to, for whoever shows it or writes it down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from prunecli.report.table import Table


class StageOutcome(Protocol):
    """What a stage that writes a checkpoint left behind."""

    @property
    def path(self) -> Path:
        """The checkpoint."""
        ...

    def document(self) -> dict[str, Any]:
        """Returns everything as one JSON document."""
        ...

    def figures(self) -> dict[str, Any]:
        """Returns the main figures, which a run notes."""
        ...

    def tables(self) -> Sequence[Table]:
        """Returns what people see."""
        ...
