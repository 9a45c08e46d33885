"""Do the processes that a reward starts end with the process it runs in? They are found in /proc, by their session or their environment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

MARK = "GRPO_REWARD_PROCESS"
"""In the environment of what a reward process starts: its pool and its own id."""

MOST_ROUNDS = 20
"""What is killed may just have started another; nothing that is only left behind needs more than two rounds."""


def own_children(pool: str) -> None:
    """Makes all that this process starts from now on findable: by a session of its own, which forks share, and by the environment."""
    with contextlib.suppress(OSError):  # it leads a session already
        os.setsid()
    os.environ[MARK] = f"{pool}.{os.getpid()}"


def end_children_of_the_dead(pool: str, workers: Collection[int]) -> None:
    """Kills what processes of a pool that have ended left running. What living ones started is theirs."""
    for _ in range(MOST_ROUNDS):
        found = [pid for pid, worker in _started_by(pool, workers) if not _is_alive(worker)]
        if not found:
            return
        _kill(found)


def end_own_children(pool: str) -> None:
    """Kills what this process has started."""
    own = os.getpid()
    for _ in range(MOST_ROUNDS):
        found = [pid for pid, worker in _started_by(pool, [own]) if worker == own]
        if not found:
            return
        _kill(found)


def _started_by(pool: str, workers: Collection[int]) -> Iterator[tuple[int, int]]:
    """Running processes that reward processes started, and which. A session's number is not given to a new process while anyone is in it."""
    mark = re.compile(rf"(?:^|\0){MARK}={pool}\.(\d+)\0".encode())
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            pid, (state, _, _, session) = int(folder.name), _stat(folder)
            if state in "ZX":
                continue
            if int(session) in workers and int(session) != pid:
                yield pid, int(session)
            elif found := mark.search((folder / "environ").read_bytes()):
                yield pid, int(found[1])


def _is_alive(pid: int) -> bool:
    try:
        return _stat(Path(f"/proc/{pid}"))[0] not in "ZX"
    except OSError:
        return False


def _stat(folder: Path) -> list[str]:
    """State, parent, group and session."""
    return (folder / "stat").read_text().rpartition(")")[2].split()[:4]


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.01)
