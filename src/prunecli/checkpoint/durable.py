"""Writing files so that a crash, a full disk or a power cut leaves the old content or the new, never a part."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prunecli.errors import RecipeError, ResourceError

FAULT_VARIABLE = "PRUNE_FAULT"
"""Names a point of `reach` at which the process kills itself: NAME, or NAME@3 for the third time it gets there."""

_reached: dict[str, int] = {}


def reach(point: str) -> None:
    """Marks a place where a crash matters. It does nothing, except for tests that name it in `PRUNE_FAULT`.

    Args:
        point: For instance "file:synced".
    """
    wanted = os.environ.get(FAULT_VARIABLE)
    if wanted is None:
        return
    name, _, time = wanted.partition("@")
    if name == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] == int(time or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def write_atomically(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Writes a file so that `path` holds either its old content or the complete new one.

    Args:
        path: The file to replace or create, with the mode the umask allows.
        write: Called with a temporary path in the same folder.
        replace: Whether a file that is there by the end may be replaced.

    Raises:
        RecipeError: There is one and it may not.
        ResourceError: The disk is full, or the folder cannot be written; `path` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise unwritable(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~current_umask())
        reach("file:staged")
        sync(temporary)
        reach("file:synced")
        if replace:
            temporary.replace(path)
        else:
            _rename_to_new(temporary, path)
        reach("file:renamed")
        sync_folder(path.parent)
    except FileExistsError as error:
        raise RecipeError(f"{path}: exists by now; add --force to replace it, or choose another name") from error
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str, *, replace: bool = True) -> None:
    """Writes UTF-8 text; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), replace=replace)


def remove_leftovers(path: Path) -> None:
    """Removes what a killed process left of an unfinished `write_atomically`; nobody else may be writing `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until a folder's list of names is on the disk, where the system can do that."""
    with suppress(OSError):  # not on Windows, not on every network file system
        sync(folder)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Gives a file a name that must be free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        temporary.replace(path)


def current_umask() -> int:
    """The mode bits that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_space(path: Path, needed: int) -> None:
    """Makes sure that a file of `needed` bytes could be written beside `path`, before hours of work.

    Raises:
        ResourceError: The folder cannot be written, or has too little space.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unwritable(path, error) from error
    if free < needed:
        raise ResourceError(
            f"{folder}: has {free / 1e6:,.0f} MB free and this run writes up to {needed / 1e6:,.0f} MB (checkpoint and "
            "saved states); free some, or choose another place"
        )


def unwritable(path: Path, error: OSError) -> ResourceError:
    """The error of a file that could not be written."""
    cause = error.strerror or str(error) or type(error).__name__
    return ResourceError(f"{path}: could not be written ({cause}); free some space or choose another place")
