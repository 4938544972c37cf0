"""Which git commit is checked out, read from the files: running git would run what a repository's settings name."""

from __future__ import annotations

import re
import stat
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"refs/[\w][\w./@+-]*")
_LARGEST = 2**26
_LINKS = 5


def head_commit(folder: Path) -> str | None:
    """The commit checked out in the repository that `folder` lies in, in full; changes since then do not show.

    Worktrees, submodules, packed and symbolic references and SHA-256 repositories are understood.

    Returns:
        40 or 64 hex digits; None outside of a repository, before the first commit, or where that cannot be found out.
    """
    try:
        start = folder.resolve()
        for place in (start, *start.parents):
            directory = _git_directory(place)
            if directory is not None:
                return _resolve(directory)
    except (OSError, ValueError, RuntimeError):  # unreadable, odd bytes in a name, a circle of links
        pass
    return None


def source_commit() -> str | None:
    """The commit of this tool where it runs from a checkout of its own source; None where it is installed."""
    root = Path(__file__).resolve().parents[3]
    checkout = (root / ".git").exists() and (root / "src" / "prunecli" / "measure").is_dir()
    return head_commit(root) if checkout else None


def _git_directory(place: Path) -> Path | None:
    found = place / ".git"
    if found.is_dir():
        return found if _read(found / "HEAD") is not None else None
    text = _read(found)  # a worktree and a submodule have a file that names it
    if text is None or not text.startswith("gitdir:"):
        return None
    return place / text.removeprefix("gitdir:").strip()


def _resolve(directory: Path) -> str | None:
    shared = _read(directory / "commondir")
    common = directory / shared.strip() if shared is not None else directory
    text = _read(directory / "HEAD")
    for _ in range(_LINKS):
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
    """Text of a regular file of moderate size, else None; opening a pipe would wait for ever."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
