"""`--restarts n` begins a run again where it was killed or failed, and not where it is done, wrong, or was asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.run import supervise
from grpo.run.supervise import run_again_until_done

CHILD = """
import os, pathlib, sys
starts = pathlib.Path(sys.argv[1])
starts.write_text((starts.read_text() if starts.exists() else "") + " ".join(sys.argv[3:]) + ";")
end = sys.argv[2].split(",")[starts.read_text().count(";") - 1]
os.kill(os.getpid(), 9) if end == "kill" else sys.exit(int(end))
"""


@pytest.mark.parametrize(
    ("ends", "restarts", "code", "starts"),
    [
        ("0", 3, 0, 1),
        ("kill,1,0", 3, 0, 3),
        ("kill,kill,kill", 1, 137, 2),  # 128 + 9, as a shell has it
        ("1,1", 1, 1, 2),
        ("2,0", 3, 2, 1),
        ("143,0", 3, 143, 1),
        ("130,0", 3, 130, 1),
    ],
)
def test_only_what_went_wrong_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, restarts: int, code: int, starts: int
) -> None:
    child, log = tmp_path / "child.py", tmp_path / "starts"
    child.write_text(CHILD)
    popen = supervise.subprocess.Popen
    monkeypatch.setattr(supervise.subprocess, "Popen", lambda command, **options: popen([sys.executable, child, *command[4:]], **options))
    assert run_again_until_done([str(log), ends], ["--redo", "x"], restarts)[0] == code
    assert log.read_text().split(";")[:-1] == ["--redo x", *[""] * (starts - 1)]


ASKED = """
import os, signal, sys, time
from grpo.run.supervise import run_again_until_done
from grpo.run import supervise
popen = supervise.subprocess.Popen
sleeps = (  # has no handler yet, as while it imports
    "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); open(os.environ['STARTS'], 'a').write('x'); time.sleep(60)"
)
supervise.subprocess.Popen = lambda command, **options: popen([sys.executable, "-c", sleeps], **options)
sys.exit(run_again_until_done(["run", "x"], [], 3)[0])
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_while_it_starts_is_not_begun_again(tmp_path: Path, signum: signal.Signals) -> None:
    starts = tmp_path / "starts"
    command = [sys.executable, "-c", ASKED]
    supervisor = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "STARTS": str(starts)}, start_new_session=True)
    while not starts.exists():
        time.sleep(0.05)
    os.killpg(supervisor.pid, signum)  # as a terminal does: to everyone in the foreground
    supervisor.wait(timeout=20)
    assert supervisor.returncode in (128 + signum, 1) and starts.read_text() == "x"
