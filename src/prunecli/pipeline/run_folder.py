"""What the files of a run are called, and what a run says in them that it has done."""

from __future__ import annotations

import json
from pathlib import Path

from prunecli.checkpoint.header import read_manifest
from prunecli.errors import RecipeError
from prunecli.report.schema import read_report

PLAN_NAME, RUN_NAME = "plan.yaml", "run.json"


def read_run(folder: Path) -> list[tuple[str, Path]]:
    """The finished stages of the run in `folder`, in order: the kind of each, and the file that it wrote.

    Raises:
        RecipeError: There is no run, or its record is damaged.
    """
    record = folder / RUN_NAME
    try:
        stages = json.loads(record.read_text(encoding="utf-8"))["stages"]
        return [(str(stage["stage"]), folder / Path(str(stage["path"])).name) for stage in stages]
    except FileNotFoundError as error:
        raise RecipeError(f"{folder}: holds no run (no {RUN_NAME})") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{record}: is damaged; start the run again with --force") from error


def check_run(folder: Path, *, whole: bool = False) -> None:
    """Checks that what the finished stages of a run have written is there and was not cut short.

    Of a checkpoint only the header and the length are looked at; one that is gone, as people remove large files, is
    missed only if it is needed.

    Args:
        folder: Of the run.
        whole: Whether checkpoints are needed, too.

    Raises:
        RecipeError: There is no run, its record or a report is damaged, or a file is missing.
        ModelError: A checkpoint is damaged.
    """
    for kind, path in read_run(folder):
        if not path.is_file():
            if whole or path.suffix == ".json":
                raise RecipeError(f"{path}: is missing")
        elif kind == "eval":
            read_report(path)
        elif path.suffix == ".safetensors":
            read_manifest(path)


def reports_of_run(folder: Path) -> list[Path]:
    """The reports of the finished stages of a run, in order, those that are still there.

    Raises:
        RecipeError: See `read_run`.
    """
    return [path for stage, path in read_run(folder) if stage == "eval" and path.is_file()]
