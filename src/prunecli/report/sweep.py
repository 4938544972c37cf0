"""What a sweep is and what it has come to: its cells, which other commands read, and a line for each that has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
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
        status: Whether it has figures; "damaged": files that it has written cannot be read any more.
        report: Its last report, a file in its folder.
        dense: The report of the network before it was pruned, likewise.
        figures: By name, those of its report, and against that network.
        seconds: How long it took, without what it shares with others.
        error: Why there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: str
    values: dict[str, Any]
    status: Literal["finished", "failed", "damaged"]
    report: str | None = None
    dense: str | None = None
    figures: dict[str, float | None] = Field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Its values on one line."""
        return label_of(self.values)

    @property
    def status_text(self) -> str:
        """What became of it, after its label."""
        return {"finished": "is finished", "failed": "failed", "damaged": "is damaged"}[self.status]

    def row(self) -> Figures:
        """Its figures with its name, as conditions read them."""
        return {**self.figures, "name": self.label}


class SweepHead(BaseModel):
    """What a sweep is, as its folder says it.

    Attributes:
        axes: For each axis the option that it changes, a dotted key.
        stages: The kinds of stages that each cell runs.
        cells: The cells that are known, by name, with what the axes have in them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    axes: dict[str, str]
    stages: tuple[str, ...]
    cells: dict[str, dict[str, Any]]

    def axis_of(self, option: str) -> str | None:
        """The axis that changes an option, or the first one whose dotted key ends in it."""
        return next((name for name, key in self.axes.items() if key == option or key.endswith(f".{option}")), None)


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


def read_head(folder: Path) -> SweepHead:
    """What a sweep is.

    Raises:
        RecipeError: Its folder does not say so.
    """
    path = folder / SWEEP_NAME
    try:
        return SweepHead.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecipeError(f"{path}: is damaged; run the sweep again, which writes it again") from error


def read_lines(folder: Path) -> dict[str, SweepRow]:
    """What the driver has noted of each cell that has ended.

    This is a record for people and their programs. What a cell has come to is in its own files, so a line that is
    missing or damaged costs nothing but the seconds that it names.
    """
    try:
        lines = (folder / RESULTS_NAME).read_bytes().splitlines(keepends=True)
    except OSError:
        return {}
    rows: dict[str, SweepRow] = {}
    for line in lines:
        if line.endswith(b"\n"):
            with suppress(ValidationError):
                row = SweepRow.model_validate_json(line)
                rows[row.cell] = row
    return rows


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
            f"{folder}: no cell of this sweep is finished; wait, or run the sweep again, which continues it"
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
