"""Several files that appear together, or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prunecli.checkpoint.durable import check_place, current_umask, sync, sync_folder, unwritable
from prunecli.errors import RecipeError

WEIGHTS = "model.safetensors"
"""The weights in a folder."""
RECORD = "prune_export.json"
"""What describes an export, in a folder that is one."""


def outputs(path: Path, suffix: str, *, int8: bool, described: bool) -> list[Path]:
    """Every file that may be written beside and for an output, or the folder that it is."""
    if not suffix:
        return [path]
    companions = {".onnx": [path.with_name(path.name + ".data")], ".xml": [path.with_suffix(".bin")]}
    files = [path, *companions.get(suffix, ())]
    if int8:
        files += [int8_path(path), int8_path(path).with_name(int8_path(path).name + ".data")]
    return [*files, record_path(path)] if described else files


def int8_path(path: Path) -> Path:
    """Where the network of eight-bit integers goes."""
    return path.with_suffix(f".int8{path.suffix}")


def record_path(path: Path) -> Path:
    """Where the description of a file goes: beside it, and in a folder that is an export."""
    return path.with_name(f"{path.name}.json")


def check_free(paths: Sequence[Path], force: bool) -> None:
    """Refuses to replace what is there unasked, and folders that are no exports at all.

    Raises:
        RecipeError: Something is there.
    """
    for path in paths:
        if path.is_dir() and any(path.iterdir()) and not (path / RECORD).is_file():
            raise RecipeError(f"{path}: is a folder of other files; choose another name with -o")
        if path.exists() and not force and not (path.is_dir() and not any(path.iterdir())):
            raise RecipeError(f"{path}: exists; add --force to replace it, or choose another name")
        check_place(path)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder in which `path` is written under its own name; it and what is still in it goes at the end.

    Raises:
        ResourceError: Nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path, force: bool) -> list[Path]:
    """Moves everything that was written into the folder around `target`.

    Args:
        folder: From `staged`.
        target: Where its main file, or the folder, goes.
        force: Whether to replace what is there.

    Returns:
        The files, or the folder. Files that the export which they replace has written beside them are gone.

    Raises:
        RecipeError: Something has been written there in the meantime.
        ResourceError: It cannot be moved.
    """
    moved: list[Path] = []
    before, mask = _recorded(target), current_umask()
    try:
        for item in sorted(folder.iterdir()):
            item.chmod((0o777 if item.is_dir() else 0o666) & ~mask)
            for file in item.rglob("*") if item.is_dir() else [item]:
                file.chmod(0o666 & ~mask) if item.is_dir() else None
                sync(file)
            goal = target.parent / item.name
            check_free([goal], force)
            if goal.is_dir():  # an earlier export, which goes with everything in it
                goal.rename(folder / f"{item.name}.before")
            item.replace(goal)
            moved.append(goal)
        for stale in before - set(moved):  # integers of another network, for instance
            stale.unlink(missing_ok=True)
        sync_folder(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error
    return moved


def _recorded(target: Path) -> set[Path]:
    """The files of an earlier export of that name."""
    try:
        files = json.loads(record_path(target).read_text(encoding="utf-8"))["files"]
        names = {str(file["name"]) for file in files}
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or something else of that name
        return set()
    own = {path.name for path in outputs(target, target.suffix, int8=True, described=False)}
    return {target.parent / name for name in names & own}
