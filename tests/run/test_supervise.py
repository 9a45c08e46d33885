"""`--restarts n` begins a run again where it was killed or failed, and not where it is done, wrong, or was asked to stop."""

from __future__ import annotations

import sys
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
    monkeypatch.setattr(supervise.subprocess, "Popen", lambda command: popen([sys.executable, child, *command[3:]]))
    assert run_again_until_done([str(log), ends], ["--redo", "x"], restarts) == code
    assert log.read_text().split(";")[:-1] == ["--redo x", *[""] * (starts - 1)]
