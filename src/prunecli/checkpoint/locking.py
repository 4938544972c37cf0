"""Locking a folder for one process, and naming the process that holds it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from prunecli import ranks
from prunecli.checkpoint.durable import unwritable
from prunecli.errors import RecipeError

LOCK_NAME, HOLDER_NAME = "lock", "holder.json"


@contextmanager
def locked(folder: Path, command: str = "", output: Path | None = None) -> Iterator[None]:
    """Locks `folder`, creating it if needed; the lock of a process that dies is released.

    Of several processes that work together rank 0 holds the lock, for all of them.

    Args:
        folder: The folder that no other process may write to.
        command: The running command, shown to other processes that try to lock the folder.
        output: The path that messages name instead of `folder`.

    Raises:
        RecipeError: Another process holds the lock; the message names it.
        ResourceError: The folder cannot be made or written to.
    """
    held: list[FileLock] = []
    ranks.by_first(lambda: held.append(_acquired(folder, output)))
    try:
        for _ in held:
            _note_holder(folder, command)
        yield
    finally:
        for lock in held:
            _release(lock, folder)


def _acquired(folder: Path, output: Path | None) -> FileLock:
    if folder.is_symlink():
        raise RecipeError(f"{folder}: is a symbolic link; remove it, or write somewhere else")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RecipeError(
            f"{output or folder}: in use by {_holder(folder)}; wait for it, or write somewhere else"
        ) from error
    except OSError as error:
        raise unwritable(output or folder, error) from error
    return lock


def _note_holder(folder: Path, command: str) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": platform.node(), "since": started, "command": command}
    with suppress(OSError):  # a full disk: the lock works without this file
        (folder / HOLDER_NAME).unlink(missing_ok=True)  # it may be a link to somewhere else
        with (folder / HOLDER_NAME).open("x", encoding="utf-8") as file:
            json.dump(holder, file)


def _release(lock: FileLock, folder: Path) -> None:
    with suppress(OSError):
        (folder / HOLDER_NAME).unlink(missing_ok=True)
        (folder / LOCK_NAME).unlink(missing_ok=True)  # before the release, so that nobody locks a file about to go
    lock.release()
    with suppress(OSError):
        folder.rmdir()  # unless something else was written to it


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER_NAME).read_text(encoding="utf-8"))
        command = holder["command"] or "no command"
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({command})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
