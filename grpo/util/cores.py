"""How many cores may this process use? Fewer than the machine has, in many containers and batch jobs."""

from __future__ import annotations

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time in each so many, as a container sees its own limit (cgroup v2): "150000 100000", or "max 100000"."""


def num_cores() -> int:
    """Those that the process may run on, and no more than its container's share of time is worth, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not QUOTA.is_file():
        return allowed
    quota, period = QUOTA.read_text(encoding="ascii").split()
    return allowed if quota == "max" else min(allowed, max(1, math.ceil(int(quota) / int(period))))
