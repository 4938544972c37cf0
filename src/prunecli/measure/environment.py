"""On what a figure was measured."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

LIBRARIES = ("prunecli", "torch", "torchvision", "timm", "torch-pruning")


def library_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions by distribution name; what is not installed is left out."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_environment(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """Processor or accelerator, threads and versions, as a report records them."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "platform": platform.platform(),
        "python": platform.python_version(),
        **library_versions(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
