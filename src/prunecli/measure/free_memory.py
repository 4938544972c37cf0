"""How much memory this process may still take: what the machine has, and what the process may have of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""What cgroups of version 1 say without a limit is a little under 2^63."""


def free_memory_bytes() -> int | None:
    """Bytes that can still be allocated before something fails or the system ends a process; None where unknown.

    The least of: what the machine has free or could free, swap included; what is left of the limits of the control
    groups; what is left of the limits of the process (`ulimit -d`, `ulimit -v`).
    """
    known = [*_of_machine(), *_of_groups(), *_of_process()]
    return max(0, min(known)) if known else None


def _of_machine() -> Iterator[int]:
    fields = _fields(_PROC / "meminfo")
    if "MemAvailable" in fields:
        yield 1024 * (fields["MemAvailable"] + fields.get("SwapFree", 0))


def _of_process() -> Iterator[int]:
    if sys.platform == "win32":  # which has no such limits
        return
    import resource

    fields = _fields(_PROC / "self" / "status")
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and used in fields:
            yield soft - 1024 * fields[used]


def _of_groups() -> Iterator[int]:
    for folder in control_groups("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None and most < _UNLIMITED:
                yield most - now + _fields(folder / "memory.stat").get(cached, 0)  # files can be read again


def control_groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that limit "memory" or "cpu"; a container may show its own at the top."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = _CGROUPS if not controllers else _CGROUPS / controller
        if not controllers or controller in controllers.split(","):
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _fields(path: Path) -> dict[str, int]:
    """Numbers in a file of lines with a name and a number."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
