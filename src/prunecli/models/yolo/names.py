"""The package's names of networks, read from its files: neither it nor torch is imported for this."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from prunecli.errors import ModelError

INSTALL = "pip install 'prunecli[ultralytics]' (its licence is the AGPL-3.0)"
_LEFT_OUT = ("yoloe", "-world", "-rtdetr", "-resnet")
"""Parts of the names of networks that read texts, are transformers, or come from torchvision."""


def folder() -> Path:
    """Where the package is installed.

    Raises:
        ModelError: It is not installed.
    """
    try:
        found = find_spec("ultralytics")
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"ultralytics: needs the package of this name; {INSTALL}")
    return Path(next(iter(found.submodule_search_locations)))


def listed() -> list[str]:
    """All names, such as "yolo11n-seg"; none if the package is not installed."""
    try:
        return list(package_files())
    except ModelError:
        return []


@cache
def package_files() -> dict[str, tuple[Path, str | None]]:
    """The file and the size in it by name.

    Raises:
        ModelError: The package is not installed.
    """
    return dict(sorted(_each_file()))


def _each_file() -> Iterator[tuple[str, tuple[Path, str | None]]]:
    for path in sorted((folder() / "cfg" / "models").glob("*/yolo*.yaml")):
        stem = path.stem
        if any(part in stem for part in _LEFT_OUT):
            continue
        scales = re.findall(r"^  ([a-z]): ?\[", path.read_text(encoding="utf-8"), re.MULTILINE)
        match = re.fullmatch(r"(yolov?\d+)(-.*)?", stem)
        if not scales or match is None:
            yield stem, (path, scales[0] if scales else None)
        else:
            yield from ((f"{match[1]}{scale}{match[2] or ''}", (path, scale)) for scale in scales)
