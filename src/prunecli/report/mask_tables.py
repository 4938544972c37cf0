"""What the values in masks, or the numbers of classes of texts, mean, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from prunecli.report.table import Table

_SHOWN = 40


def label_table(labels: Iterable[tuple[str, str | None, float]], counted: str = "pixels") -> Table:
    """Value, class (None: void) and share of what is `counted`; of many the first, as the manifest has them all."""
    rows = [(value, name or "(void)", f"{share:.2%}") for value, name, share in labels if share or name is not None]
    if len(rows) > _SHOWN:
        rows = [*rows[:_SHOWN], ("...", f"{len(rows) - _SHOWN} more, in the checkpoint's manifest", "")]
    value, title = ("value", "masks") if counted == "pixels" else ("number", "classes")
    return Table((value, "class", counted), rows, title=title, numeric=(0, 2))
