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

from grpo.errors import CheckpointError, RecipeError
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


def test_what_is_no_folder_is_told_without_writing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RecipeError, match=rf"cannot write to {path}: {tmp_path}/file is a file; choose another folder with --out"):
            RunFolder(path).check()
    RunFolder(tmp_path / "new" / "run").check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_made_models_without_a_place_are_told_with_the_variable_that_gives_one(tmp_path: Path) -> None:
    from grpo.pipeline.run import _check_cache

    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"made models cannot be kept in .*/file/cache, which can't be written; set GRPO_CACHE"):
        _check_cache(tmp_path / "file" / "cache")
    _check_cache(tmp_path / "cache")
