"""On what a figure was measured."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from prunecli.measure.commit import head_commit, source_commit

if sys.platform != "win32":
    import resource

LIBRARIES = ("prunecli", "torch", "torchvision", "timm", "torch-pruning", "spikingjelly")


def library_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions by distribution name; what is not installed is left out."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or less where a container or `ulimit -v` bounds it."""
    if sys.platform == "win32":
        return sys.maxsize
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such bound, or "max"
            continue
    bound = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min(*limits, bound) if bound != resource.RLIM_INFINITY else min(limits)


def describe_environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """Processor or accelerator, cores, threads, memory, versions and commits, as a report records them.

    `commit` is what is checked out in the repository that the current folder lies in, `prunecli_commit` that of this
    tool where it runs from its source; either is left out where there is none.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    commits = {"commit": _commit_here(), "prunecli_commit": source_commit()}
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "memory_bytes": memory_bytes(),
        "machine": platform.machine(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **library_versions((*LIBRARIES, "numpy")),
        **{key: commit for key, commit in commits.items() if commit is not None},
    }


def _commit_here() -> str | None:
    try:
        return head_commit(Path.cwd())
    except OSError:  # the folder is gone
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
