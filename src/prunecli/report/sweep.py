"""What a sweep has come to so far: a line for each cell that has ended, which other commands read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prunecli.errors import RecipeError
from prunecli.report.comparison import compare_reports
from prunecli.report.pareto import Figures, figures_of, figures_of_report
from prunecli.report.schema import Report

SWEEP_SCHEMA: Literal["prunecli.sweep/1"] = "prunecli.sweep/1"
SWEEP_NAME, RESULTS_NAME, CELLS = "sweep.json", "results.jsonl", "cells"


class SweepRow(BaseModel):
    """One cell.

    Attributes:
        cell: Its name, which is that of its folder in `cells`.
        values: What the axes have in it.
        status: Whether it has figures.
        report: Its last report, a file in its folder.
        dense: The report of the network before it was pruned, likewise.
        figures: By name, those of its report, and against that network.
        seconds: How long it took, without what it shares with others.
        error: Why there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: str
    values: dict[str, Any]
    status: Literal["finished", "failed"]
    report: str | None = None
    dense: str | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Its values on one line."""
        return label_of(self.values)

    def row(self) -> Figures:
        """Its figures with its name, as conditions read them."""
        return {**self.figures, "name": self.label}


def label_of(values: Mapping[str, Any]) -> str:
    """Values of axes on one line."""
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Any) -> str:
    """A value as tables and messages have it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ",".join(shown(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return ",".join(map(shown, value))
    return str(value)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (folder / SWEEP_NAME).is_file()


def read_rows(folder: Path) -> list[SweepRow]:
    """The cells of a sweep that have ended, also while it is running; a line that a crash cut off is left out.

    Raises:
        RecipeError: A line is damaged.
    """
    path = folder / RESULTS_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a readable text file ({error})") from error
    rows: dict[str, SweepRow] = {}
    for index, line in enumerate(lines):
        if not line.endswith("\n"):
            continue
        try:
            row = SweepRow.model_validate_json(line)
        except ValidationError as error:
            raise RecipeError(f"{path}:{index + 1}: is damaged; run the sweep again, which writes it again") from error
        rows[row.cell] = row
    return list(rows.values())


def figures_against(report: Report, dense: Report | None) -> dict[str, float | None]:
    """Figures of a report by name; what compares is absent without the network before it was pruned."""
    if dense is None:
        named = figures_of_report("", report)
    else:
        named = figures_of(compare_reports(["", "-"], [dense, report]))[1]
    return {name: value for name, value in named.items() if isinstance(value, (int, float)) and value is not None}


def paths_of(folder: Path, rows: Sequence[SweepRow]) -> list[tuple[str, Path]]:
    """What `compare` and `report` take for the folder of a sweep: the dense network, and every finished cell.

    Raises:
        RecipeError: Nothing has been finished.
    """
    finished = [row for row in rows if row.status == "finished" and row.report is not None]
    if not finished:
        raise RecipeError(
            f"{folder / RESULTS_NAME}: names no finished cell of this sweep; wait, or run the sweep again, which "
            "takes in every cell whose own files are complete"
        )
    own = [(row.label, folder / CELLS / row.cell / str(row.report)) for row in finished]
    return [*_dense_networks(folder, finished), *own]


def _dense_networks(folder: Path, rows: Sequence[SweepRow]) -> list[tuple[str, Path]]:
    """The reports of networks before they were pruned, each once, called by the values that they belong to.

    Cells that share one have copies of its report, which are the same to the last byte.
    """
    together: dict[bytes, list[SweepRow]] = {}
    for row in rows:
        if row.dense is not None and (path := folder / CELLS / row.cell / row.dense).is_file():
            together.setdefault(path.read_bytes(), []).append(row)
    named = []
    everywhere = _common(rows)
    for own in together.values():
        values = {name: value for name, value in _common(own).items() if name not in everywhere}
        name = f"dense {label_of(values)}" if len(together) > 1 and values else "dense"
        named.append((name, folder / CELLS / own[0].cell / str(own[0].dense)))
    return named


def _common(rows: Sequence[SweepRow]) -> dict[str, Any]:
    """The values that all rows have alike."""
    return {name: value for name, value in rows[0].values.items() if all(row.values.get(name) == value for row in rows)}
