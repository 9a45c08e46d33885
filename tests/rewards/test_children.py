"""What a reward starts ends with its process, and what it prints is no output of the command's. Real processes throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from uuid import uuid4

import pytest

from rewards import RewardRuntime, RewardSpec, ScoreInput
from rewards.processes import Processes

ROOT = Path(__file__).parents[2]
SLEEPERS = """
    import os, subprocess, time

    def starts_some(completion, marker):
        command = ["bash", "-c", f"exec -a {marker} sleep 600"]
        subprocess.Popen(command)
        subprocess.Popen(command, env={"PATH": os.environ["PATH"]})
        subprocess.Popen(command, start_new_session=True)
        if os.fork() == 0:
            os.execvp("bash", command)
        subprocess.Popen(["bash", "-c", f"(exec -a {marker} sleep 600) & (exec -a {marker} sleep 600) & exit"])
        while completion != "ends" and len(running(marker)) < 6:
            time.sleep(0.01)
        if completion == "dies":
            os._exit(9)
        return 1.0

    def running(marker):
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found += [int(name)] * file.read().startswith(marker.encode() + b"\\0")
            except OSError:
                pass
        return found
"""


def running(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += [int(folder.name)] * (folder / "cmdline").read_bytes().startswith(marker.encode() + b"\0")
        except OSError:
            pass
    return found


def is_gone(marker: str) -> bool:
    end = time.monotonic() + 5
    while running(marker) and time.monotonic() < end:
        time.sleep(0.02)
    return not running(marker)


@pytest.fixture
def marker() -> str:
    return f"m{uuid4().hex[:12]}"


def test_what_a_reward_starts_ends_with_the_runtime(reward_file: Callable[..., Path], marker: str) -> None:
    """Children and grandchildren, in a session of their own or with an environment of their own; nobody else's."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        with RewardRuntime([RewardSpec("./mine.py:starts_some")], base=reward_file(SLEEPERS)) as runtime:
            (scored,) = runtime.score([ScoreInput({"completion": "", "marker": marker})])
            assert scored.reward == 1 and len(running(marker)) == 6
        assert is_gone(marker) and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_what_a_reward_starts_ends_with_its_process(reward_file: Callable[..., Path], marker: str) -> None:
    other = f"{marker}o"
    with RewardRuntime([RewardSpec("./mine.py:starts_some")], processes=2, base=reward_file(SLEEPERS)) as runtime:
        inputs = [ScoreInput({"completion": text, "marker": name}) for text, name in (("dies", marker), ("", other))]
        assert [one.reward for one in runtime.score(inputs)] == [None, 1]
        assert is_gone(marker) and len(running(other)) == 6  # the other process is there, and so is what it started
    assert is_gone(other)


def test_what_a_reward_starts_ends_with_a_command_that_is_killed(reward_file: Callable[..., Path], marker: str, tmp_path: Path) -> None:
    script = f"""
        import time
        from rewards import RewardRuntime, RewardSpec, ScoreInput
        runtime = RewardRuntime([RewardSpec("./mine.py:starts_some")], base={str(reward_file(SLEEPERS))!r})
        runtime.score([ScoreInput({{"completion": "", "marker": {marker!r}}})])
        print("scored", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", dedent(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "scored\n"
        assert len(running(marker)) == 6
        process.send_signal(signal.SIGKILL)
    assert is_gone(marker)


def test_processes_that_nobody_closes_end_with_what_they_started(reward_file: Callable[..., Path], marker: str) -> None:
    script = f"""
        from rewards import RewardRuntime, RewardSpec, ScoreInput
        runtime = RewardRuntime([RewardSpec("./mine.py:starts_some")], base={str(reward_file(SLEEPERS))!r})
        runtime.score([ScoreInput({{"completion": "", "marker": {marker!r}}})])
    """
    subprocess.run([sys.executable, "-c", dedent(script)], cwd=ROOT, check=True)
    assert is_gone(marker)


def write_to_both() -> None:
    print("from Python", flush=True)
    os.write(1, b"from C\n")


def test_a_pool_prints_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    processes = Processes(1)
    try:
        processes.call(write_to_both, deadline_s=30)
    finally:
        processes.close()
    said = capfd.readouterr()
    assert said.out == "" and said.err == "from Python\nfrom C\n"


def test_json_is_all_that_a_command_with_a_talking_reward_prints(reward_file: Callable[..., Path]) -> None:
    """When it is imported, checked, prepared and asked; by print, by a C library's buffers, by a child."""
    talks = """
        import ctypes, subprocess
        from rewards import reward

        def talk(where):
            print(where)
            ctypes.CDLL(None).printf(b"printf %s\\n", where.encode())
            subprocess.run(["echo", "echo", where])

        talk("imported")

        def check():
            talk("checked")

        @reward(check=check, prepare=lambda: talk("prepared"))
        def right(completion, answer):
            talk("asked")
            return float(f"> {answer} <" in completion or "{%s}" % answer in completion)
    """
    folder = reward_file(talks)
    (folder / "sums.jsonl").write_text("".join(json.dumps({"question": "?", "answer": str(n)}) + "\n" for n in range(3)))
    command = [sys.executable, "-m", "grpo.cli", "reward", "test", "./mine.py:right", "--data", "sums.jsonl", "--json"]
    told = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert json.loads(told.stdout)["passed"], told.stderr
    for where in ("imported", "checked", "prepared", "asked"):
        assert {where, f"printf {where}", f"echo {where}"} <= set(told.stderr.splitlines())
