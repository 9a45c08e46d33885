"""One request to stop may come as several signals; a second request does not wait; a terminal that is gone stops no step."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.run.interruption import ONE_REQUEST_S, Interrupted, Interruption

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("both", [(signal.SIGTERM, signal.SIGHUP), (signal.SIGHUP, signal.SIGHUP)], ids=["systemd", "a-closed-terminal"])
def test_two_signals_at_once_are_one_request(both: tuple[signal.Signals, signal.Signals]) -> None:
    said: list[str] = []
    with pytest.raises(Interrupted) as end, Interruption(said.append) as interruption:
        with interruption.held():
            for signum in both:
                signal.raise_signal(signum)
            time.sleep(0)  # where Python runs its handlers
        interruption.raise_if_asked()
    assert end.value.signum == both[0] and len(said) == 1


def test_a_second_request_does_not_wait() -> None:
    with pytest.raises(Interrupted), Interruption(lambda text: None) as interruption, interruption.held():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(ONE_REQUEST_S + 0.05)
        signal.raise_signal(signal.SIGHUP)
        pytest.fail("went on")


def test_under_nohup_a_closed_terminal_is_no_request() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption(print):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


RUN = """
import sys, time
from grpo.run.interruption import Interruption
from grpo.run.progress import Progress
from grpo.cli import _explains_errors

@_explains_errors
def run():
    with Progress(1) as progress, Interruption(progress.say) as interruption:
        with interruption.held():
            open(sys.argv[1], "w").close()
            while interruption.asked_by is None:
                progress.say("a line")
                time.sleep(0.01)
            progress.say("and what is said after that")
            open(sys.argv[1], "w").write("saved")
        interruption.raise_if_asked()

import typer
try:
    run()
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def test_a_step_ends_and_is_saved_though_its_terminal_is_gone(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    begun = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "step")],
        cwd=ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    while not (tmp_path / "step").exists():
        assert begun.poll() is None
        time.sleep(0.02)
    os.close(master)  # from now on every write to the terminal fails
    time.sleep(0.1)
    begun.send_signal(signal.SIGHUP)
    assert begun.wait(timeout=30) == 129
    assert (tmp_path / "step").read_text() == "saved"


def test_a_reader_that_ends_stops_no_step(tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -c 'import sys; from pathlib import Path; exec(Path(sys.argv[2]).read_text())' {tmp_path}/step {tmp_path}/run.py"
    )
    (tmp_path / "run.py").write_text(RUN.replace("while interruption.asked_by is None:", "for _ in range(50):"))
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "") and (tmp_path / "step").read_text() == "saved"
