"""Writing files so that a crash, a full disk or a power cut leaves the old content or the new, never a part."""

from __future__ import annotations

import errno
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
"""Names a `crash_point` at which the process kills itself: NAME, or NAME@3 for the third time it passes there."""

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of places where nothing can be written, however much space there is."""
_passes: dict[str, int] = {}


def check_place(path: Path) -> None:
    """Checks that a file could have this name: no part of its path is another file.

    Raises:
        RecipeError: One is.
    """
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise RecipeError(f"{path}: {parent} is not a directory; choose another name with -o")


def crash_point(name: str) -> None:
    """Marks a position where a crash matters. Does nothing, unless a test names the point in `PRUNE_FAULT`.

    Args:
        name: For instance "file:synced".
    """
    fault = os.environ.get(FAULT_VARIABLE)
    if fault is None:
        return
    target, _, nth = fault.partition("@")
    if target == name:
        _passes[name] = _passes.get(name, 0) + 1
        if _passes[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def write_atomically(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Writes a file so that `path` holds either its old content or the complete new content.

    Args:
        path: The file to replace or create, with the mode that the umask allows.
        write: Called with a temporary path in the same folder.
        replace: Whether to replace a file that exists when writing is done.

    Raises:
        RecipeError: The file exists and `replace` is false.
        ResourceError: The disk is full, or the folder is not writable; `path` is unchanged.
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
        crash_point("file:staged")
        sync(temporary)
        crash_point("file:synced")
        if replace:
            temporary.replace(path)
        else:
            _rename_to_new(temporary, path)
        crash_point("file:renamed")
        sync_folder(path.parent)
    except FileExistsError as error:
        raise RecipeError(
            f"{path}: was created in the meantime; add --force to replace it, or choose another name"
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str, *, replace: bool = True) -> None:
    """Writes UTF-8 text; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), replace=replace)


def remove_leftovers(path: Path) -> None:
    """Removes temporary files of a killed `write_atomically`; no other process may be writing `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk, where the system supports it."""
    with suppress(OSError):  # not on Windows, not on every network file system
        sync(folder)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Renames a file without replacing an existing one."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        temporary.replace(path)


def current_umask() -> int:
    """The permission bits that are withheld from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_space(path: Path, needed: int) -> None:
    """Checks before hours of work that `needed` bytes can be written to the folder of `path`.

    Raises:
        ResourceError: The folder is not writable or has too little space.
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
            "saved states); free some space or choose another folder"
        )


def unwritable(path: Path, error: OSError) -> ResourceError:
    """The error for a file that could not be written."""
    cause = error.strerror or str(error) or type(error).__name__
    remedy = "" if error.errno in _NOT_ALLOWED else "free some space or "
    return ResourceError(f"{path}: could not be written ({cause}); {remedy}choose another folder")
