"""What the files of a run are called, and what a run says in them that it has done."""

from __future__ import annotations

import json
from pathlib import Path

from prunecli.errors import RecipeError

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


def reports_of_run(folder: Path) -> list[Path]:
    """The reports of the finished stages of a run, in order, those that are still there.

    Raises:
        RecipeError: See `read_run`.
    """
    return [path for stage, path in read_run(folder) if stage == "eval" and path.is_file()]
