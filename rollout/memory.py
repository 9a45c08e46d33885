"""Main memory that processes hold. A page that n processes share counts as 1/n of a page in each."""

from __future__ import annotations

import psutil


def bytes_of_tree(pid: int | None = None) -> int:
    """Memory of ``pid``, or of this process, and of all its descendants; 0 if it has ended."""
    try:
        root = psutil.Process(pid)
        return sum(bytes_of_process(process) for process in (root, *root.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def bytes_of_process(process: psutil.Process | None = None) -> int:
    """Memory of ``process``, or of this one, without its children; 0 if it has ended."""
    try:
        found = (process or psutil.Process()).memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    return int(getattr(found, "pss", found.uss))  # only Linux divides shared pages among their owners
