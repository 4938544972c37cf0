"""One process at a time in a folder, and the name of the one that is there."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from prunecli.checkpoint.durable import unwritable
from prunecli.errors import RecipeError

LOCK_NAME, HOLDER_NAME = "lock", "holder.json"


@contextmanager
def locked(folder: Path, command: str = "", what: Path | None = None) -> Iterator[None]:
    """Holds `folder`, which is made if it is not there; a process that dies lets go of it.

    Args:
        folder: The folder that nobody else may write to.
        command: What to tell those who find it locked.
        what: What they wanted to write, if not `folder` itself.

    Raises:
        RecipeError: Another process holds it; the message names it.
        ResourceError: The folder cannot be written.
    """
    if folder.is_symlink():
        raise RecipeError(f"{folder}: is a link; remove it, or write somewhere else")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RecipeError(
            f"{what or folder}: in use by {_holder(folder)}; wait for it, or write somewhere else"
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        held = {"pid": os.getpid(), "host": platform.node(), "since": started, "command": command}
        with suppress(OSError):  # a full disk: the lock holds without its name
            (folder / HOLDER_NAME).unlink(missing_ok=True)  # it may be a link that leads elsewhere
            with (folder / HOLDER_NAME).open("x", encoding="utf-8") as file:
                json.dump(held, file)
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER_NAME).unlink(missing_ok=True)
            (folder / LOCK_NAME).unlink(missing_ok=True)  # before the release: nobody may lock a file that is to go
        lock.release()
        with suppress(OSError):
            folder.rmdir()  # if nothing else was written to it


def _holder(folder: Path) -> str:
    try:
        held = json.loads((folder / HOLDER_NAME).read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} since {held['since']} ({held['command'] or 'no command'})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
