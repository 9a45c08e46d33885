"""Main memory that processes hold. A page that n processes share counts as a n-th in each."""

from __future__ import annotations

import psutil


def bytes_of_tree(pid: int | None = None) -> int:
    """Of ``pid``, or of this process, and of all that they started; 0 once it has ended."""
    try:
        root = psutil.Process(pid)
        return sum(bytes_of_process(process) for process in (root, *root.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def bytes_of_process(process: psutil.Process | None = None) -> int:
    """Of one, or of this one, by itself; 0 once it has ended."""
    try:
        found = (process or psutil.Process()).memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    return int(getattr(found, "pss", found.uss))  # only Linux counts shared pages in parts
