"""What the values in masks, or the numbers of classes of texts, mean, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from prunecli.report.table import Table

_SHOWN = 40


def label_table(labels: Iterable[tuple[str, str | None, float]], *, of_masks: bool = True) -> Table:
    """Value, class (None: void) and share of pixels, or of texts; of many the first, as the manifest has them all."""
    rows = [(value, name or "(void)", f"{share:.2%}") for value, name, share in labels if share or name is not None]
    if len(rows) > _SHOWN:
        rows = [*rows[:_SHOWN], ("...", f"{len(rows) - _SHOWN} more, in the checkpoint's manifest", "")]
    columns, title = (("value", "class", "pixels"), "masks") if of_masks else (("number", "class", "texts"), "classes")
    return Table(columns, rows, title=title, numeric=(0, 2))
