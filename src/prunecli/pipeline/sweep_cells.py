"""The cells of a sweep by their own files: which are finished, with which figures, which have failed or are damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.errors import PruneError, RecipeError
from prunecli.pipeline.run_folder import RUN_NAME, check_run, read_run, reports_of_run
from prunecli.report.schema import read_report
from prunecli.report.sweep import CELLS, SweepRow, figures_against, read_head, read_lines

FAILURE_NAME = "failure.json"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result: the message, the kind of error, and its exit code."""

    message: str
    kind: str
    exit_code: int


def read_failure(folder: Path) -> Failure | None:
    """Why the run in a folder has failed; None: it has not, or was started again."""
    try:
        stored = json.loads((folder / FAILURE_NAME).read_text(encoding="utf-8"))
        return Failure(stored["message"], stored["kind"], stored["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_failure(folder: Path, failure: Failure) -> None:
    """Notes why a run has failed."""
    document = {"message": failure.message, "kind": failure.kind, "exit_code": failure.exit_code}
    write_text_atomically(folder / FAILURE_NAME, json.dumps(document) + "\n")


def read_cells(folder: Path) -> list[SweepRow]:
    """The cells of a sweep that have ended, also while it is running, in the order of the sweep.

    Raises:
        RecipeError: The folder does not say which cells there are.
    """
    head, noted = read_head(folder), read_lines(folder)
    return list(_ended(folder, head.cells, head.stages, noted))


def _ended(
    folder: Path, cells: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], noted: Mapping[str, SweepRow]
) -> Iterator[SweepRow]:
    for name, values in cells.items():
        place, line = folder / CELLS / name, noted.get(name)
        error: str | None
        if (place / RUN_NAME).is_file():
            try:
                check_run(place)
                if [kind for kind, _ in read_run(place)] == list(kinds):
                    yield finished_row(name, values, place, line.seconds if line is not None else None)
                    continue
            except PruneError as damage:
                yield SweepRow(cell=name, values=dict(values), status="damaged", error=str(damage))
                continue
        failure = read_failure(place)
        error = failure.message if failure is not None else line.error if line is not None else None
        if error is not None:
            yield SweepRow(cell=name, values=dict(values), status="failed", error=error)


def finished_row(name: str, values: Mapping[str, Any], folder: Path, seconds: float | None) -> SweepRow:
    """The row of a finished cell, from the files in its folder.

    Args:
        name: Of the cell.
        values: What the axes have in it.
        folder: Of the cell.
        seconds: How long it took, if that is known.

    Raises:
        RecipeError: It has no report, or a damaged one.
    """
    reports = reports_of_run(folder)
    if not reports:
        raise RecipeError(f"{folder}: has no report any more")
    stages = read_run(folder)
    before = [path for kind, path in stages[: _first_prune(stages)] if kind == "eval"]
    dense = before[0] if before and before[0] != reports[-1] else None
    return SweepRow(
        cell=name,
        values=dict(values),
        status="finished",
        report=reports[-1].name,
        dense=dense.name if dense is not None else None,
        figures=figures_against(read_report(reports[-1]), read_report(dense) if dense is not None else None),
        seconds=seconds,
    )


def _first_prune(stages: Sequence[tuple[str, Path]]) -> int:
    return next((index for index, (kind, _) in enumerate(stages) if kind == "prune"), len(stages))
