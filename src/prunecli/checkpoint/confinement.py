"""Paths read from files: a manifest or recipe from somebody else must not lead outside the allowed folders."""

from __future__ import annotations

from pathlib import Path


def stays_inside(path: str | Path, *folders: Path) -> bool:
    """Whether `path` lies in one of `folders` once `..` and symbolic links are resolved.

    Args:
        path: Absolute, or relative to the current folder. A path that begins with `~` is never inside.
        folders: Folders that may be read from.
    """
    if str(path).startswith("~"):
        return False
    try:
        target = Path(path).resolve()
        return any(target.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null byte
        return False
