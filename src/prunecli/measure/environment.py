"""The machine and software versions that a figure was measured on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from prunecli.measure.commit import head_commit, source_commit
from prunecli.measure.cores import usable_cores

if sys.platform != "win32":
    import resource

_LIBRARIES = ("prunecli", "torch", "torchvision", "timm", "torch-pruning", "spikingjelly")


def library_versions(names: tuple[str, ...] = _LIBRARIES) -> dict[str, str]:
    """Installed versions by distribution name; packages that are not installed are omitted."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def memory_bytes() -> int:
    """Bytes of memory that this process may use: that of the machine, or the limit of a container or `ulimit -v`."""
    if sys.platform == "win32":
        return sys.maxsize
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    bound = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min(*limits, bound) if bound != resource.RLIM_INFINITY else min(limits)


def describe_environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """Processor or accelerator, cores, threads, memory, versions and commits, as recorded in a report.

    `commit` is that of the repository around the current folder, and `prunecli_commit` that of this tool when it runs
    from its source; each is omitted if there is none.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    commits = {"commit": _current_commit(), "prunecli_commit": source_commit()}
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "usable_cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "machine": platform.machine(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **library_versions((*_LIBRARIES, "numpy")),
        **{key: commit for key, commit in commits.items() if commit is not None},
    }


def _current_commit() -> str | None:
    try:
        return head_commit(Path.cwd())
    except OSError:  # the folder was removed
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
