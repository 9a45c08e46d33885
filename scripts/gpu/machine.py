"""Prepare a machine for the checks: unpack archives, make an environment that has the grpo command, end what a check left running.

    python3 machine.py unpack ARCHIVE FOLDER
    python3 machine.py environment FOLDER
    python3 machine.py end MARK

Only the standard library is used, because nothing else is there yet.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

GRPO = "#!{python}\nimport sys\nfrom grpo.cli import main\nsys.exit(main())\n"


def unpack(archive: str, folder: str) -> None:
    """An archive of packages, which may hold links and programs."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="fully_trusted")


def environment(folder: str) -> None:
    """A second way into this Python's environment, with ``grpo`` beside ``python3``, where the tests look for it. The first stays as it is."""
    new, current = Path(folder), Path(sys.prefix)
    (new / "bin").mkdir(parents=True, exist_ok=True)
    if (current / "pyvenv.cfg").exists():
        shutil.copy(current / "pyvenv.cfg", new / "pyvenv.cfg")
        for name in ("lib", "lib64", "include", "share"):
            if (current / name).exists():
                (new / name).symlink_to(current / name)
    for name in ("python3", "python"):
        (new / "bin" / name).symlink_to(os.path.realpath(sys.executable))
    command = new / "bin" / "grpo"
    command.write_text(GRPO.format(python=new / "bin" / "python3"))
    command.chmod(0o755)


def end(mark: str, timeout_s: float = 10.0) -> None:
    """Kill every process whose environment has GPU_CHECK=``mark``, and wait until all are gone: what they hold of the GPU is then free."""
    waiting: list[int] = []
    for pid in marked_processes(mark):
        try:
            descriptor = os.pidfd_open(pid)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            continue
        waiting.append(descriptor)
    while waiting:
        gone, _, _ = select.select(waiting, [], [], timeout_s)  # a descriptor of a process is readable once it has ended
        if not gone:
            return
        waiting = [descriptor for descriptor in waiting if descriptor not in gone]


def marked_processes(mark: str) -> Iterator[int]:
    wanted = f"GPU_CHECK={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                is_marked = wanted in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # of another user, or gone
                continue
            if is_marked:
                yield int(entry.name)


COMMANDS: dict[str, Callable[..., None]] = {"unpack": unpack, "environment": environment, "end": end}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
