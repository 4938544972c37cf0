"""The section about training: figures by epoch, and what training hooks had to show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecli.checkpoint.manifest import Manifest, Step
from prunecli.report.page import Picture, Rows, Section
from prunecli.report.page_plots import Curve, figures_in, training_plot
from prunecli.report.table import Table

_NOT_DRAWN = ("epoch", "seconds", "tables")


def training_sections(logs: Mapping[Path, list[dict[str, Any]]], manifest: Manifest | None) -> list[Section]:
    """Curves of every log, and of what a method that prunes while it trains has noted; no section without either."""
    curves = [_curve(path.name.removesuffix(".metrics.jsonl"), rows) for path, rows in logs.items()]
    hooks = [curve for path, rows in logs.items() for curve in _curves_of_hooks(path, rows)]
    hooks += [curve for step in (manifest.history if manifest is not None else ()) for curve in _curves_of_step(step)]
    blocks: list[Picture | Rows] = []
    for drawn, caption in ((curves, "Training, by epoch"), (hooks, "What the method did, by epoch")):
        if any(curve.figures for curve in drawn):
            said = "; ".join(_described(curve) for curve in drawn)
            blocks.append(Picture(training_plot(drawn), "svg", caption, said, _table(drawn)))
    for path, rows in logs.items():
        for table in rows[-1].get("tables", ()):
            if (last := _as_table(table)) is not None:
                blocks.append(Rows(last, f"{path.name}: {last.title or 'table'} after epoch {rows[-1]['epoch']}", True))
    return [Section("training", "Training", blocks)] if blocks else []


def _curves_of_step(step: Step) -> list[Curve]:
    """Figures of a step that it has for several epochs, such as how many channels were pruned and regrown."""
    curves = []
    for name, rows in step.figures.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) and "epoch" in row for row in rows):
            known = [row for row in rows if isinstance(row, dict)]
            curves.append(_curve(f"{step.stage}: {name.replace('_', ' ')}", known))
    return curves


def _curve(name: str, rows: list[dict[str, Any]]) -> Curve:
    kinds = dict.fromkeys(key for row in rows for key in row if key not in _NOT_DRAWN)
    figures = {kind.replace("_", " "): [_number(row.get(kind)) for row in rows] for kind in kinds}
    return Curve(name, [row["epoch"] for row in rows], figures)


def _curves_of_hooks(path: Path, rows: list[dict[str, Any]]) -> list[Curve]:
    """Sums over the rows of each column of whole numbers, such as channels that are alive, for each epoch."""
    figures: dict[str, list[float | None]] = {}
    for place, row in enumerate(rows):
        for raw in row.get("tables", ()):
            table = _as_table(raw)
            for kind, total in _sums(table).items() if table is not None else ():
                figures.setdefault(kind, [None] * len(rows))[place] = total
    name = path.name.removesuffix(".metrics.jsonl")
    return [Curve(name, [row["epoch"] for row in rows], figures)] if figures else []


def _sums(table: Table) -> dict[str, float]:
    sums = {}
    for column in table.numeric:
        cells = [row[column] for row in table.rows]
        if cells and all(cell.isdigit() for cell in cells):
            sums[f"{table.title}: {table.columns[column]}".removeprefix(": ")] = float(sum(map(int, cells)))
    return sums


def _as_table(raw: Any) -> Table | None:
    """A table of a log; None for what is none."""
    try:
        rows = [tuple(map(str, row)) for row in raw["rows"]]
        return Table(tuple(map(str, raw["columns"])), rows, str(raw.get("title", "")), tuple(raw.get("numeric", ())))
    except (KeyError, TypeError, AttributeError):
        return None


def _table(curves: list[Curve]) -> Table:
    kinds = figures_in(curves)
    rows = []
    for curve in curves:
        for place, epoch in enumerate(curve.epochs):
            values = (curve.figures.get(kind, ()) for kind in kinds)
            cells = ["" if not known or known[place] is None else f"{known[place]:.5g}" for known in values]
            rows.append((curve.name, str(epoch), *cells))
    return Table(("training", "epoch", *kinds), rows, numeric=tuple(range(1, len(kinds) + 2)))


def _described(curve: Curve) -> str:
    known = {kind: [value for value in values if value is not None] for kind, values in curve.figures.items()}
    ends = [f"{kind} from {values[0]:.4g} to {values[-1]:.4g}" for kind, values in known.items() if values]
    return f"{curve.name}, {len(curve.epochs)} epochs: {', '.join(ends)}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
