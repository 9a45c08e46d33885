"""One process at a time writes into a run's folder; a dead one's hold is taken over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.errors import CheckpointError
from grpo.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from grpo.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_by_host_and_pid_and_a_dead_ones_hold_is_taken_over(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        try:
            with pytest.raises(CheckpointError, match=f"in use by process {first.pid} on {socket.gethostname()}; wait for it, or choose"):
                with RunFolder(tmp_path).held():
                    pass
        finally:
            first.send_signal(signal.SIGKILL)
    assert (tmp_path / ".holder.json").exists()  # of the dead one
    with RunFolder(tmp_path).held():
        assert f'"pid": {os.getpid()}' in (tmp_path / ".holder.json").read_text()
    assert not (tmp_path / ".holder.json").exists()


def test_of_two_that_begin_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while all(process.poll() is None for process in both):
            assert time.monotonic() < deadline, "both hold the folder"
            time.sleep(0.05)
        (refused,) = [process for process in both if process.poll() is not None]
        assert refused.stderr is not None and "is in use by process" in refused.stderr.read()
    finally:
        for process in both:
            process.kill()
            process.wait()
            process.stderr.close()
