"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from prunecli.measure.free_memory import control_groups


def usable_cores() -> int:
    """The least of: cores of the machine, those that the process is bound to, and what its control groups allow it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for folder in control_groups("cpu") if (quota := _quota(folder)) >= 0)]))


def _quota(folder: Path) -> float:
    """Cores of time that a control group has; -1: any."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        except OSError:
            return -1.0
    try:
        return int(quota) / int(period)  # "max", and -1 in version 1, where there is no limit
    except (ValueError, ZeroDivisionError):
        return -1.0
