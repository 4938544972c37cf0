"""The git commit that is checked out, read from the files of `.git`; see "Written by hand" in docs/architecture.md."""

from __future__ import annotations

import re
import stat
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"refs/[\w][\w./@+-]*")
_MAX_BYTES = 2**26
_MAX_LINKS = 5


def head_commit(folder: Path) -> str | None:
    """Returns the full hash of the commit checked out in the repository that contains `folder`.

    Worktrees, submodules, packed and symbolic references and SHA-256 repositories are supported. Uncommitted changes
    are not detected.

    Returns:
        40 or 64 hex digits; None outside a repository, before the first commit, or if the files cannot be read.
    """
    try:
        start = folder.resolve()
        for parent in (start, *start.parents):
            directory = _git_directory(parent)
            if directory is not None:
                return _resolve(directory)
    except (OSError, ValueError, RuntimeError):  # unreadable, invalid bytes in a name, a loop of links
        pass
    return None


def source_commit() -> str | None:
    """Returns the commit of this tool when it runs from a checkout of its source; None if it is installed."""
    root = Path(__file__).resolve().parents[3]
    checkout = (root / ".git").exists() and (root / "src" / "prunecli" / "measure").is_dir()
    return head_commit(root) if checkout else None


def _git_directory(folder: Path) -> Path | None:
    path = folder / ".git"
    if path.is_dir():
        return path if _read(path / "HEAD") is not None else None
    text = _read(path)  # worktrees and submodules have a file that names the directory
    if text is None or not text.startswith("gitdir:"):
        return None
    return folder / text.removeprefix("gitdir:").strip()


def _resolve(directory: Path) -> str | None:
    shared = _read(directory / "commondir")
    common = directory / shared.strip() if shared is not None else directory
    text = _read(directory / "HEAD")
    for _ in range(_MAX_LINKS):
        if text is None:
            return None
        text = text.strip()
        if _HASH.fullmatch(text):
            return text
        name = text.removeprefix("ref:").strip()
        if not text.startswith("ref:") or not _REF.fullmatch(name) or ".." in name:
            return None
        text = _read(directory / name) or _read(common / name) or _packed(common, name)
    return None


def _packed(common: Path, name: str) -> str | None:
    for line in (_read(common / "packed-refs") or "").splitlines():
        commit, _, packed = line.partition(" ")
        if packed == name:
            return commit
    return None


def _read(path: Path) -> str | None:
    """Text of a regular file of moderate size, otherwise None; opening a pipe would block."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
